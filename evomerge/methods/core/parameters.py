"""Parameters of merge methods: the marks in a signature, and the schema that is read off them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from evomerge.common.errors import InputError


@dataclass(frozen=True)
class PerExpert:
    """Marks a parameter with one value per expert: default and the range that makes sense."""

    default: float
    low: float
    high: float


@dataclass(frozen=True)
class Range:
    """Marks a float parameter given once: the range that makes sense; its default is Python's.

    Attributes:
        step: values are rounded to its multiples, so that there are few of them.
    """

    low: float
    high: float
    step: float | None = None


Weight = Annotated[Sequence[float], PerExpert(1.0, low=-10.0, high=10.0)]
"""wᵢ, the factor of an expert or of its task vector."""
Density = Annotated[Sequence[float], PerExpert(0.5, low=0.0, high=1.0)]
"""Share of the entries of a task vector that are kept."""
Lambda = Annotated[float, Range(-10.0, 10.0)]
"""λ, the factor of the whole update; the base at 0."""


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
    step: float | None = None

    @property
    def keyword(self) -> str:
        """The Python keyword: `lambda` is spelled `lambda_`."""
        return f"{self.name}_" if self.name == "lambda" else self.name

    def check(self, value: Any, where: str) -> bool | float | str:
        """Return `value` in the parameter's type.

        Raises:
            InputError: wrong type, out of range or not among the choices; begins with `where`.
        """
        if self.type is float and isinstance(value, int | float) and not isinstance(value, bool):
            if self.low is not None and not self.low <= value <= typing.cast(float, self.high):
                raise InputError(f"{where} is {value:g}, outside [{self.low:g}, {self.high:g}]")
            return float(value) if self.step is None else round(value / self.step) * self.step
        if self.type is bool and isinstance(value, bool):
            return value
        if self.type is str and value in self.choices:
            return typing.cast(str, value)
        expected = f"one of {', '.join(self.choices)}" if self.choices else self.type.__name__
        raise InputError(f"{where} is {value!r}; expected {expected}")


def parameters_of(
    function: Callable[..., Any], reserved: Collection[str] = ()
) -> dict[str, Parameter]:
    """Read the schema off a function's keyword-only parameters, those `reserved` left out.

    Raises:
        TypeError: a parameter is annotated with something else than PerExpert, Range, bool or
            Literal.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    found = {}
    for keyword, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or keyword in reserved:
            continue
        name = keyword.rstrip("_")
        found[name] = _parameter(name, hints[keyword], parameter.default)
    return found


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, PerExpert):
            return Parameter(name, float, mark.default, True, mark.low, mark.high)
        if isinstance(mark, Range):
            return Parameter(name, float, default, False, mark.low, mark.high, step=mark.step)
    if hint is bool:
        return Parameter(name, bool, default)
    if typing.get_origin(hint) is Literal:
        return Parameter(name, str, default, choices=typing.get_args(hint))
    raise TypeError(f"parameter {name!r}: annotate it with PerExpert, Range, bool or Literal")
