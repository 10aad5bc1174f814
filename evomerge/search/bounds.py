"""The campaign file's `space.weights.genes`: what is fixed, what is searched, and between what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from evomerge.config import Bounds
from evomerge.errors import InputError
from evomerge.methods.registry import Method, Parameter


def fixed_and_bounds(
    method: Method, genes: Mapping[str, Any], where: str
) -> tuple[dict[str, bool | float | str], dict[str, Bounds]]:
    """Split the file's `genes`, but those named with dots, into fixed values and bounds."""
    fixed: dict[str, bool | float | str] = {}
    bounds: dict[str, Bounds] = {}
    for name, value in genes.items():
        if "." in name:
            continue
        found = _value_or_bounds(method.parameter(name, where), value, f"{where}.{name}")
        if isinstance(found, Bounds):
            bounds[name] = found
        else:
            fixed[name] = found
    return fixed, bounds


def _value_or_bounds(parameter: Parameter, value: Any, where: str) -> bool | float | str | Bounds:
    """A value of the file's `genes` section, checked against the parameter's range."""
    if isinstance(value, list):
        value = Bounds(low=value[0], high=value[1])
    if not isinstance(value, Bounds):
        return parameter.check(value, where)
    if parameter.type is not float:
        raise InputError(f"{where}: not a number, so it has no bounds; give one value")
    for end in (value.low, value.high):
        parameter.check(end, where)
    return value


@dataclass
class OwnBounds:
    """What the file says of single genes, by patterns; of several that fit, the last counts."""

    patterns: dict[str, bool | float | str | Bounds]
    where: str

    def __post_init__(self) -> None:
        self._unused = set(self.patterns)

    def of(self, gene: str, otherwise: Bounds) -> bool | float | str | Bounds:
        """The gene's own bounds or value, or those of its parameter."""
        found: bool | float | str | Bounds = otherwise
        for pattern, given in self.patterns.items():
            if fnmatchcase(gene, pattern):
                self._unused.discard(pattern)
                found = given
        return found

    def check_used(self) -> None:
        """Refuse patterns that fit no gene."""
        for pattern in sorted(self._unused):
            raise InputError(
                f"{self.where}.{pattern}: fits no gene; genes are called like "
                "weight.layer_0.EXPERT, and their parameter must have bounds of its own"
            )


def own_bounds(method: Method, genes: Mapping[str, Any], where: str) -> OwnBounds:
    """The patterns among the file's `genes`: the keys with dots."""
    found = {}
    for pattern, value in genes.items():
        name, dot, _ = pattern.partition(".")
        if dot:
            parameter = method.parameter(name, where)
            found[pattern] = _value_or_bounds(parameter, value, f"{where}.{pattern}")
    return OwnBounds(found, where)
