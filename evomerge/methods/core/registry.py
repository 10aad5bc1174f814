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

in a file of the folder `evomerge/methods/`. `base` and `experts` have one shape and one float dtype
(float32 in a campaign), are finite, and must not be written to; the result has that shape and
dtype, and whether it is finite is the caller's business. Keyword arguments are the parameters:
`PerExpert` ones arrive as one value per expert, the others once. Two more keywords are filled in
for functions that name them: `at`, where the tensors lie (for random masks), and `measured`, the
result of the function given as `measure=`, which is called once with a `View` of the whole tensors
and the parameters that it names: for reductions, and for arithmetic that is about the parameters
only; a measure that names `at` gets a function from a flat index to the place of a slice that
begins there. A measure may need something of the sources alone, whatever the parameters: that is a
statistic. The function given as `statistic=` is called once per campaign for each tensor and
expert, that given as `joint=` for each tensor and set of experts, and the measure gets a list of
the results, or the one result, as `statistics`. The function stands at the top of its file, and its
annotated result is a dataclass of tensors, arrays, numbers, and sequences and dataclasses of such:
then it is kept on disk, and shared by all workers; otherwise each worker calls it again. A `joint=`
function may name parameters, too: it is called once for each of their values, and each result is
kept, so they should take few values.

A method may need what calibration data say of the experts (`evomerge calibrate`): the kinds given
as `calibrated=` stand in the view's `calibrated`, each as one tensor per expert. A tensor of which
an expert has no such statistic (norms, biases and embeddings have no Gram matrix) lacks the kind
there, and the method says what it does then: it averages.

A method with `elementwise=True` is called on flat slices of bounded size; it must not look beyond
the entries it is given, except through `measured`; where that holds `Entries` (one number per
entry, row or column), or anything else that has a `part(slice)`, such as a trim, the function gets
its part for the slice. On large models it is compiled into one pass over memory, with the same
bytes as result: numbers among the parameters and in `measured` therefore arrive as float32 tensors
of shape () or (experts,), and a function that asks Python for their values (`if weight[0] > 0`) is
left uncompiled; `torch.where` is not. One with `elementwise=False` is called on whole tensors, and
on one thread, so that its sums, products and decompositions have the same bytes everywhere; a
measure or a statistic sees to that itself (`decompositions`, `inner_products`).

Torch is imported inside functions, so that listing the methods does not load it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from evomerge.common.errors import InputError
from evomerge.common.one_thread import one_thread
from evomerge.common.plugins import Registry
from evomerge.methods.core.masks import at
from evomerge.methods.core.parameters import Parameter, parameters_of
from evomerge.methods.core.slices import part_of
from evomerge.methods.core.view import Statistic, Tensor, View, whole_view

RESERVED = ("at", "measured")
"""Keywords that are filled in for a method's function, and are no parameters."""


@dataclass(frozen=True)
class Method:
    """A registered merge method: the pure function, its schema, and the decorator's arguments.

    `remeasure(measured, **parameters)` is the measure's result for other values of the parameters
    it is differentiable in, at the entries that `measured` keeps; where it is None, the measure
    keeps them by itself.
    """

    name: str
    function: Callable[..., Tensor]
    parameters: Mapping[str, Parameter]
    reference: str
    experts: tuple[int, int | None] = (1, None)
    elementwise: bool = True
    measure: Callable[..., Any] | None = None
    statistic: Callable[[View, int], Statistic] | None = None
    joint: Callable[..., Statistic] | None = None
    needs_position: bool = False
    relative: bool = False
    differentiable_in: tuple[str, ...] = ()
    remeasure: Callable[..., Any] | None = None
    changes: Sequence[str] = ()
    copies: int = 1
    squares: int = 0
    calibrated: tuple[str, ...] = ()
    of_parameters: bool = False

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def version(self) -> int:
        """The version of its arithmetic: another one may give other bytes of the same recipe."""
        return 1 + len(self.changes)

    @property
    def has_task_vectors(self) -> bool:
        """Experts count by what they change: `lambda: 0` gives the base."""
        return "lambda" in self.parameters

    @property
    def by_entry(self) -> bool:
        """Each entry depends on the entries of its own place and on parameters alone."""
        return self.elementwise and (self.measure is None or self.of_parameters)

    def check_pieces(self, where: str) -> None:
        """Refuse a method that cannot merge the pieces of a tensor by coefficients of their own.

        Raises:
            InputError: it looks beyond single entries; begins with `where`.
        """
        if not self.by_entry:
            raise InputError(
                f"{where}: {self.name} looks at whole tensors, so it cannot merge their pieces "
                "by coefficients of their own; use task_arithmetic or linear, or leave them whole"
            )

    def __call__(
        self,
        base: Tensor,
        experts: Sequence[Tensor],
        *,
        calibrated: Mapping[str, Sequence[Tensor]] | None = None,
        rms: Sequence[float] | None = None,
        **arguments: Any,
    ) -> Tensor:
        """Merge whole tensors by hand, outside a recipe; masks are those of seed 0.

        Args:
            base: θ₀.
            experts: of its shape and dtype.
            calibrated: kind → one tensor per expert, for methods that need them.
            rms: of each `fisher` over its whole model; over this tensor unless given.
            arguments: the parameters.
        """
        shared = (p for p in self.parameters.values() if not p.per_expert)
        given = {p.keyword: p.default for p in shared} | arguments
        if self.needs_position:
            given.setdefault("at", at(0, "", [str(i) for i in range(len(experts))]))
        if self.measure is not None:
            places = {"at": given["at"].starting_at} if self.needs_position else {}
            view = whole_view(base, experts, calibrated, rms)
            measured = self.measured(view, given | places)
            given["measured"] = part_of(measured, slice(0, base.numel()), base.shape)
        if self.elementwise:
            return self.function(base, experts, **given)
        with one_thread():  # sums and decompositions of whole tensors
            return self.function(base, experts, **given)

    def measured(
        self,
        view: View | None,
        arguments: Mapping[str, Any],
        statistics: Sequence[Statistic] | Statistic | None = None,
    ) -> Any:
        """Run the measure with the parameters, and the statistics, that it names."""
        assert self.measure is not None
        return call_with_named(self.measure, view, arguments, statistics)

    def parameter(self, name: str, where: str) -> Parameter:
        """Return the parameter called `name`.

        Raises:
            InputError: the method has no such parameter; lists those it has.
        """
        if name not in self.parameters:
            has = ", ".join(self.parameters) or "none"
            raise InputError(
                f"{where}: {self.name} has no parameter {name!r}; it has {has}; "
                f"type: evomerge explain {self.name}"
            )
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
        """Make the function's keyword arguments from a recipe's values, defaults filled in.

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
                arguments[parameter.keyword] = [
                    parameter.check(
                        values.get(name, parameter.default), f"{where}: {expert}.{name}"
                    )
                    for expert, values in experts.items()
                ]
            else:
                value = parameters.get(name, parameter.default)
                arguments[parameter.keyword] = parameter.check(value, f"{where}: {name}")
        return arguments


def call_with_named(
    measure: Callable[..., Any],
    view: View | None,
    arguments: Mapping[str, Any],
    statistics: Sequence[Statistic] | Statistic | None = None,
) -> Any:
    """Call a measure with those of the arguments that it names, and with statistics if given.

    A measure with `**rest` gets all of them.
    """
    named = named_by(measure)
    given = {k: v for k, v in arguments.items() if named is None or k in named}
    if statistics:
        given["statistics"] = statistics
    return measure(view, **given)


@cache
def named_by(function: Callable[..., Any]) -> frozenset[str] | None:
    """Return the names of a function's keyword-only parameters; None where it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def merge_method(
    *,
    reference: str,
    experts: tuple[int, int | None] = (1, None),
    elementwise: bool = True,
    measure: Callable[..., Any] | None = None,
    statistic: Callable[[View, int], Statistic] | None = None,
    joint: Callable[..., Statistic] | None = None,
    relative: bool = False,
    differentiable_in: Sequence[str] | None = None,
    changes: Sequence[str] = (),
    copies: int = 1,
    squares: int = 0,
    calibrated: Sequence[str] = (),
    of_parameters: bool = False,
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
        joint: called as `joint(View, **parameters it names)` once per campaign and set of experts
            (and values of these parameters), instead; the measure gets its result as `statistics`.
        relative: the function is θ₀ + g(τ₁, τ₂, …) of the task vectors, whatever θ₀. What a
            `sparsify:` leaves of them is then merged as it is, not added to θ₀ and taken off
            again, which rounds.
        differentiable_in: the parameters that the result is differentiable in while those that
            decide which entries are kept are held fixed. By default all numbers, where there is
            no measure: what only compares has derivative 0. With a measure they must be named.
        changes: what gave the method other bytes since it was released, one clause for each time,
            to be read after "because"; exports record how many there were.
        copies: how many times each source's tensor in float32 the method holds at a time, with its
            measure and statistics; the plan of a GPU's memory needs it of methods that look at
            whole tensors.
        squares: how many matrices (columns, columns) in float32 it holds beside them for each
            source.
        calibrated: kinds of calibration data that it needs of every expert: `fisher`, `gram`,
            `gtheta`, `cross`.
        of_parameters: the measure looks at the parameters alone; it is called once for all tensors
            of a merge, with None for the view.
    """

    def decorate(function: Callable[..., Tensor]) -> Method:
        parameters = parameters_of(function, RESERVED)
        by_default = [p.name for p in parameters.values() if p.type is float]
        smooth = by_default if elementwise and measure is None else ()
        method = Method(
            name=function.__name__,
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
            differentiable_in=tuple(smooth if differentiable_in is None else differentiable_in),
            changes=changes,
            copies=copies,
            squares=squares,
            calibrated=tuple(calibrated),
            of_parameters=of_parameters,
        )
        return REGISTRY.add(method.name, method)

    return decorate


def _accept(found: Any, name: str) -> Method:
    """Take a merge method of another package, called as it was asked for."""
    if not isinstance(found, Method):
        raise TypeError("is no function under evomerge.methods' @merge_method")
    return found if found.name == name else replace(found, name=name)


REGISTRY = Registry[Method](
    kind="merge method", package="evomerge.methods", group="evomerge.methods", accept=_accept
)


def methods() -> Mapping[str, Method]:
    """Return every registered method by name, in alphabetical order."""
    return REGISTRY.all()


def find_method(name: str, where: str) -> Method:
    """Return the method called `name`.

    Raises:
        InputError: there is none; begins with `where` and names the nearest, or all.
    """
    return REGISTRY.find(name, where)
