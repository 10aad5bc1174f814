"""mergekit's parameter settings: how a number, a gradient or a filter gives a tensor its value.

A setting is a scalar, a list of scalars (a gradient, interpolated over the layers of a slice), or a
list of `{filter, value}` of which the first whose filter occurs in the tensor's name counts. What
is said here of mergekit is true of its release 0.1.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from evomerge.common.data_files import quoted

Value = float | bool
Kind = type[float] | type[bool] | type[int]


@dataclass(frozen=True)
class Condition:
    """The values for tensors whose name contains `filter` (None: for all).

    A scalar has one value, a gradient one or more; an empty gradient gives nothing.
    """

    filter: str | None
    values: tuple[Value, ...]


Setting = tuple[Condition, ...]


def parse_setting(raw: Any, kind: Kind) -> Setting:
    """Read a setting as YAML gives it.

    Args:
        raw: a scalar, a list of scalars, `{filter, value}`, or a list of those.
        kind: the parameter's type; texts such as `1e-5`, which YAML 1.1 does not take for numbers,
            are read as mergekit reads them.

    Raises:
        ValueError: anything else; says what to write.
    """
    if isinstance(raw, dict):
        return (_condition(raw, kind),)
    if isinstance(raw, list) and raw and all(isinstance(entry, dict) for entry in raw):
        return tuple(_condition(entry, kind) for entry in raw)
    return (Condition(None, _values(raw, kind)),)


def evaluate(setting: Setting, tensor: str, t: float) -> Value | None:
    """A tensor's value, None where the setting says nothing of it.

    Args:
        tensor: the tensor's name, which filters are searched in.
        t: depth in [0, 1] of the tensor's layer within its slice (see `depth`), 0 outside the
            layers.
    """
    for condition in setting:
        if condition.filter in (None, "*") or str(condition.filter) in tensor:
            return _interpolate(condition.values, t)
    return None


def depth(index: int, layers: int) -> float:
    """`t` of layer `index` of a slice of `layers` layers; 1 for the only layer of one."""
    return index / (layers - 1) if layers > 1 else 1.0


def _interpolate(values: tuple[Value, ...], t: float) -> Value | None:
    """Linear between the gradient's entries; truth values change at entries, never between."""
    if not values:
        return None
    place = t * (len(values) - 1)
    low = int(place)
    if isinstance(values[low], bool):
        return values[low]
    high, share = min(len(values) - 1, low + 1), place - low
    return (1 - share) * values[low] + share * values[high]


def _condition(raw: Mapping[str, Any], kind: Kind) -> Condition:
    if "value" not in raw or not set(raw) <= {"filter", "value"}:
        raise ValueError(f"{quoted(raw)} is not of the form {{filter: TEXT, value: VALUE}}")
    name = raw.get("filter")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"filter {quoted(name)} is not a text")
    return Condition(name, _values(raw["value"], kind))


def _values(raw: Any, kind: Kind) -> tuple[Value, ...]:
    entries = raw if isinstance(raw, list) else [raw]
    try:
        values = tuple(TypeAdapter(kind).validate_python(entry) for entry in entries)
    except ValidationError:
        what = "true or false" if kind is bool else "a number"
        raise ValueError(
            f"{quoted(raw)} is neither {what}, nor a list of such, nor a list of {{filter, value}}"
        ) from None
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{quoted(raw)} is not finite")
    return values
