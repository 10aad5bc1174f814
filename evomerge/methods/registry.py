"""The registry of merge methods: a function's signature is its schema.

A method is a pure function

    @merge_method(reference="Ilharco et al. 2023, arXiv:2212.04089, eq. 1")
    def task_arithmetic(
        base: Tensor,
        experts: Sequence[Tensor],
        *,
        weight: Annotated[Sequence[float], PerExpert(1.0, low=0.0, high=2.0)],
        normalize: bool = False,
    ) -> Tensor:

in any file of this folder. `base` and `experts` have one shape and one float dtype (float32 in a
campaign) and must not be written to; the result has that shape and dtype. Keyword arguments are the
parameters: `PerExpert` ones arrive as one value per expert, the others once. Two more keywords are
filled in for functions that name them: `at`, where the tensors lie (for random masks), and
`measured`, the result of the function given as `measure=`, which is called once with a `View` of
the whole tensors and the parameters that it names: for reductions, and for arithmetic that is about
the parameters only; a measure that names `at` gets a function from a flat index to the place of a
slice that begins there. What a measure needs of the sources alone, whatever the parameters, is a
statistic: the function given as `statistic=` is called once per campaign for each tensor and
expert, that given as `joint=` for each tensor and set of experts, and the measure gets a list of
the results, or the one result, as `statistics`. The function stands at the top of its file, and its
annotated result is a dataclass of tensors, arrays, numbers, and sequences and dataclasses of such:
then it is kept on disk, and shared by all workers; otherwise each worker calls it again.

A method with `elementwise=True` is called on flat slices of bounded size; it must not look beyond
the entries it is given, except through `measured`; where that holds `Entries` (one number per
entry, row or column), or anything else that has a `part(slice)`, such as a trim, the function gets
what that is for its slice. On large models it is compiled
into one pass over memory, with the same bytes as result: numbers among the parameters and in
`measured` therefore arrive as float32 tensors of shape () or (experts,), and a function that asks
Python what they are (`if weight[0] > 0`) is left uncompiled; `torch.where` is not.

Torch is imported inside functions, so that listing the methods does not load it.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from evomerge.common.errors import InputError
from evomerge.common.plugins import Registry, options

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # annotations are read at run time without importing torch

RESERVED = ("at", "measured")


@dataclass(frozen=True)
class PerExpert:
    """Marks a parameter with one value per expert: default and the range that makes sense."""

    default: float
    low: float
    high: float


@dataclass(frozen=True)
class Range:
    """Marks a float parameter given once: the range that makes sense; its default is Python's."""

    low: float
    high: float


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method, as its signature tells it."""

    name: str
    type: type[float] | type[bool] | type[str]
    default: bool | float | str
    per_expert: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any, where: str) -> bool | float | str:
        """Return `value` in the parameter's type.

        Raises:
            InputError: wrong type, out of range or not among the choices; begins with `where`.
        """
        if self.type is float and isinstance(value, int | float) and not isinstance(value, bool):
            if self.low is not None and not self.low <= value <= typing.cast(float, self.high):
                raise InputError(f"{where} is {value:g}, outside [{self.low:g}, {self.high:g}]")
            return float(value)
        if self.type is bool and isinstance(value, bool):
            return value
        if self.type is str and value in self.choices:
            return typing.cast(str, value)
        expected = f"one of {', '.join(self.choices)}" if self.choices else self.type.__name__
        raise InputError(f"{where} is {value!r}; expected {expected}")


@dataclass(frozen=True)
class Method:
    """A registered merge method: the pure function, and what its signature and decorator say."""

    name: str
    function: Callable[..., Tensor]
    parameters: Mapping[str, Parameter]
    reference: str
    experts: tuple[int, int | None]
    elementwise: bool
    measure: Callable[..., Any] | None
    statistic: Callable[[View, int], Statistic] | None
    joint: Callable[[View], Statistic] | None
    needs_position: bool
    relative: bool

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def __call__(self, base: Tensor, experts: Sequence[Tensor], **arguments: Any) -> Tensor:
        """Merge whole tensors by hand, outside a recipe; masks are those of seed 0."""
        from evomerge.methods.entries import part_of
        from evomerge.methods.masks import at

        given = {k: v.default for k, v in inspect.signature(self.function).parameters.items()}
        given = {k: v for k, v in given.items() if v is not inspect.Parameter.empty} | arguments
        if self.needs_position:
            given.setdefault("at", at(0, "", [str(i) for i in range(len(experts))]))
        if self.measure is not None:
            places = {"at": given["at"].starting_at} if self.needs_position else {}
            measured = self.measured(whole_view(base, experts), given | places)
            given["measured"] = part_of(measured, slice(0, base.numel()), base.shape)
        return self.function(base, experts, **given)

    def measured(
        self,
        view: View,
        arguments: Mapping[str, Any],
        statistics: Sequence[Statistic] | Statistic | None = None,
    ) -> Any:
        """Run the measure with the parameters, and the statistics, that it names."""
        assert self.measure is not None
        given = {k: v for k, v in arguments.items() if k in _named(self.measure)}
        if statistics:
            given["statistics"] = statistics
        return self.measure(view, **given)

    def parameter(self, name: str, where: str) -> Parameter:
        """The parameter called `name`.

        Raises:
            InputError: the method has no such parameter; lists those it has.
        """
        if name not in self.parameters:
            has = ", ".join(self.parameters) or "none"
            raise InputError(f"{where}: {self.name} has no parameter {name!r}; it has {has}")
        return self.parameters[name]

    def check_experts(self, count: int, where: str) -> None:
        """Refuse a number of experts that the method cannot merge."""
        low, high = self.experts
        if count < low or (high is not None and count > high):
            span = f"at least {low}" if high is None else f"{low} to {high}"
            raise InputError(f"{where}: {self.name} merges {span} experts, not {count}")

    def arguments(
        self,
        parameters: Mapping[str, Any],
        experts: Mapping[str, Mapping[str, Any]],
        where: str,
    ) -> dict[str, Any]:
        """The function's keyword arguments from a recipe's values, defaults filled in.

        Raises:
            InputError: an unknown parameter, a value out of its range, too few or many experts.
        """
        self.check_experts(len(experts), where)
        for name in parameters:
            if self.parameter(name, where).per_expert:
                raise InputError(f"{where}: {name!r} of {self.name} is given per expert")
        for name in {name for values in experts.values() for name in values}:
            if not self.parameter(name, where).per_expert:
                raise InputError(f"{where}: {name!r} of {self.name} is not per expert")
        arguments: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if parameter.per_expert:
                arguments[_keyword(name)] = [
                    parameter.check(
                        values.get(name, parameter.default), f"{where}: {expert}.{name}"
                    )
                    for expert, values in experts.items()
                ]
            else:
                value = parameters.get(name, parameter.default)
                arguments[_keyword(name)] = parameter.check(value, f"{where}: {name}")
        return arguments


class Statistic(Protocol):
    """What a source's tensor is like, kept for every later candidate."""

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""


@dataclass(frozen=True)
class View:
    """The flat tensors of one merge, read block by block in the arithmetic's dtype.

    `base` and each of `experts` is 1-D, in its stored dtype, and all have one length.
    """

    base: Tensor
    experts: Sequence[Tensor]
    dtype: Any
    block: int = 1 << 16
    run: Callable[..., Any] = lambda function, *rest: function(*rest)
    shape: Sequence[int] = ()

    @property
    def columns(self) -> int:
        """Entries of a row, that is along the last dimension; of all where no shape is known."""
        return self.shape[-1] if self.shape else self.base.numel()

    def taus(self, part: Any, experts: Sequence[int] | None = None) -> list[Tensor]:
        """The task vectors' entries in a slice, or at the places of an index tensor."""
        base = self.base[part].to(self.dtype)
        return [expert[part].to(self.dtype) - base for expert in self._chosen(experts)]

    def map(
        self,
        function: Callable[..., Any],
        experts: Sequence[int] | None = None,
        *rest: Tensor,
        stop: int | None = None,
    ) -> Iterator[Any]:
        """An element-wise `function([τ₁, …], *rest)`, block by block up to entry `stop`."""
        of_task_vectors, chosen = _of_task_vectors(function, self.dtype), self._chosen(experts)
        for part in self.parts(stop):
            yield self.run(of_task_vectors, self.base[part], [e[part] for e in chosen], *rest)

    def parts(self, stop: int | None = None) -> Iterator[slice]:
        """Slices of `block` entries, up to entry `stop`."""
        end = self.base.numel() if stop is None else stop
        for start in range(0, end, self.block):
            yield slice(start, min(start + self.block, end))

    def _chosen(self, experts: Sequence[int] | None) -> Sequence[Tensor]:
        return self.experts if experts is None else [self.experts[i] for i in experts]


@cache
def _named(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(options(function))


@cache
def _of_task_vectors(function: Callable[..., Any], dtype: Any) -> Callable[..., Any]:
    """`function` as one of the stored tensors; one object for each, so that it is compiled once."""

    def of_stored(base: Tensor, experts: Sequence[Tensor], *rest: Tensor) -> Any:
        wide = base.to(dtype)
        return function([expert.to(dtype) - wide for expert in experts], *rest)

    return of_stored


def whole_view(base: Tensor, experts: Sequence[Tensor]) -> View:
    """The view over whole tensors that a method measures when called on its own."""
    flat = [e.flatten() for e in experts]
    return View(base.flatten(), flat, base.dtype, shape=tuple(base.shape))


def merge_method(
    *,
    reference: str,
    experts: tuple[int, int | None] = (1, None),
    elementwise: bool = True,
    measure: Callable[..., Any] | None = None,
    statistic: Callable[[View, int], Statistic] | None = None,
    joint: Callable[[View], Statistic] | None = None,
    relative: bool = False,
) -> Callable[[Callable[..., Tensor]], Method]:
    """Make a function a merge method, registered under its own name; see this module's docstring.

    Args:
        reference: paper and equation.
        experts: least and greatest number of experts (None: no limit).
        elementwise: the function may be called on slices.
        measure: called as `measure(View, **parameters it names)` over the whole tensors before
            the slices; its result is passed as `measured`.
        statistic: called as `statistic(View, index of an expert)` once per campaign; the measure
            gets one result per expert as `statistics`.
        joint: called as `joint(View)` once per campaign and set of experts, instead; the measure
            gets its result as `statistics`.
        relative: the function is θ₀ + g(τ₁, τ₂, …) of the task vectors, whatever θ₀. What DARE
            leaves of them is then merged as it is, not added to θ₀ and taken off again, which
            rounds.
    """

    def register(function: Callable[..., Tensor]) -> Method:
        name = function.__name__
        parameters = _parameters(function)
        method = Method(
            name=name,
            function=function,
            parameters=MappingProxyType(parameters),
            reference=reference,
            experts=experts,
            elementwise=elementwise,
            measure=measure,
            statistic=statistic,
            joint=joint,
            needs_position="at" in inspect.signature(function).parameters,
            relative=relative,
        )
        return REGISTRY.add(name, method)

    return register


def _accept(found: Any, name: str) -> Method:
    """Take a merge method of another package, called as it was asked for."""
    if not isinstance(found, Method):
        raise TypeError("is no function under evomerge.methods' @merge_method")
    return found if found.name == name else replace(found, name=name)


REGISTRY = Registry[Method](
    kind="merge method", package="evomerge.methods", group="evomerge.methods", accept=_accept
)


def methods() -> Mapping[str, Method]:
    """Every registered method by name, in alphabetical order."""
    return REGISTRY.all()


def find_method(name: str, where: str) -> Method:
    """The method called `name`.

    Raises:
        InputError: there is none; begins with `where` and names the nearest, or all.
    """
    return REGISTRY.find(name, where)


def _parameters(function: Callable[..., Tensor]) -> dict[str, Parameter]:
    """Read the schema off a method's keyword-only parameters."""
    hints = typing.get_type_hints(function, include_extras=True)
    found = {}
    for keyword, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or keyword in RESERVED:
            continue
        name = keyword.rstrip("_")
        found[name] = _parameter(name, hints[keyword], parameter.default)
    return found


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, PerExpert):
            return Parameter(name, float, mark.default, True, mark.low, mark.high)
        if isinstance(mark, Range):
            return Parameter(name, float, default, False, mark.low, mark.high)
    if hint is bool:
        return Parameter(name, bool, default)
    if typing.get_origin(hint) is Literal:
        return Parameter(name, str, default, choices=typing.get_args(hint))
    raise TypeError(f"parameter {name!r}: annotate it with PerExpert, Range, bool or Literal")


def _keyword(name: str) -> str:
    """The Python keyword of a parameter: `lambda` is spelled `lambda_`."""
    return f"{name}_" if name == "lambda" else name
