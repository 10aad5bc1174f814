"""The campaign file's `space.weights.genes`: what is fixed, what is searched, and between what.

A plain name (`density`) is that parameter of every method of the campaign that has it; with a
method's name before it (`ties.density`) it is that method's own. Any other name with dots is a
pattern of gene names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from evomerge.common.errors import InputError
from evomerge.common.plugins import nearest
from evomerge.config import Bounds
from evomerge.methods import Method, Parameter
from evomerge.search.spaces.genes import Value


@dataclass(frozen=True)
class Searched:
    """A parameter that has genes.

    Attributes:
        name: what its genes' names begin with: `density`, or `ties.density`.
        parameter: of the first of `methods`, the others' being like it.
        methods: the methods that its genes count for.
    """

    name: str
    parameter: Parameter
    methods: tuple[str, ...]
    bounds: Bounds


@dataclass(frozen=True)
class Tuning:
    """The file's `genes`, read.

    Attributes:
        fixed: method → parameter → value.
        searched: in the file's order.
        own: bounds and values of single genes.
    """

    fixed: Mapping[str, Mapping[str, Value]]
    searched: Sequence[Searched]
    own: OwnBounds


def read_tuning(methods: Sequence[Method], genes: Mapping[str, Any], where: str) -> Tuning:
    """Read the file's `genes` for the methods that the campaign searches.

    Raises:
        InputError: a parameter that no method has, a value or bound out of a method's range, bounds
            for what is no number, a name that says nothing; begins with `where` and the key.
    """
    fixed: dict[str, dict[str, Value]] = {method.name: {} for method in methods}
    searched: list[Searched] = []
    patterns: dict[str, Value | Bounds] = {}
    for key, value in genes.items():
        meant, name, is_pattern = _meaning(key, methods, where)
        for method in meant:
            found = _value_or_bounds(method.parameters[name], value, f"{where}.{key}")
        if is_pattern:
            patterns[key] = found
            continue
        if "." not in key:
            meant = [method for method in meant if f"{method.name}.{name}" not in genes]
        if not meant:
            raise InputError(f"{where}.{key}: says nothing, every method has its own; leave it out")
        if isinstance(found, Bounds):
            searched += _by_shape(key, name, meant, found)
        else:
            for method in meant:
                fixed[method.name][name] = found
    return Tuning(fixed, searched, OwnBounds(patterns, where))


def _meaning(key: str, methods: Sequence[Method], where: str) -> tuple[list[Method], str, bool]:
    """Read a key of `genes`: the methods it means, its parameter, and whether it is a pattern."""
    named = [method for method in methods if key.startswith(f"{method.name}.")]
    name, dot, _ = key.removeprefix(f"{named[0].name}." if named else "").partition(".")
    found = [method for method in named or methods if name in method.parameters]
    if found:
        return found, name, bool(dot)
    if len(methods) == 1 or named:
        (named or methods)[0].parameter(name, where)
    known = {name for method in methods for name in (method.name, *method.parameters)}
    raise InputError(
        f"{where}.{key}: none of {', '.join(m.name for m in methods)} has a parameter {name!r}; "
        f"{nearest(name, known)}"
    )


def _by_shape(key: str, name: str, methods: Sequence[Method], bounds: Bounds) -> list[Searched]:
    """One for all the methods, or two where some take the parameter once and others per expert."""
    found = []
    for per_expert in (True, False):
        alike = [m for m in methods if m.parameters[name].per_expert is per_expert]
        if alike:
            names = tuple(method.name for method in alike)
            found.append(Searched(key, alike[0].parameters[name], names, bounds))
    return found


def _value_or_bounds(parameter: Parameter, value: Any, where: str) -> Value | Bounds:
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
    """Bounds and values of single genes, by patterns; of several that fit, the last counts."""

    patterns: Mapping[str, Value | Bounds]
    where: str

    def __post_init__(self) -> None:
        self._unused = set(self.patterns)

    def of(self, gene: str, otherwise: Bounds) -> Value | Bounds:
        """The gene's own bounds or value, or those of its parameter."""
        found: Value | Bounds = otherwise
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
