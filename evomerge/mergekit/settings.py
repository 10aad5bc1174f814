"""Read, evaluate and write mergekit's parameter settings: numbers, gradients and filters.

A setting is a scalar, a list of scalars (a gradient, interpolated over the layers of a slice), or a
list of `{filter, value}` of which the first whose filter occurs in the tensor's name counts. What
is said here of mergekit is true of its release 0.1.5.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from evomerge.common.data_files import quoted
from evomerge.common.errors import InputError

Value = float | bool | str
Kind = type[float] | type[bool] | type[int] | type[str]


class FilteredValues(NamedTuple):
    """The values for tensors whose name contains `filter` (None: for all).

    A scalar has one value, a gradient one or more; an empty gradient gives nothing.
    """

    filter: str | None
    values: tuple[Value, ...]


Setting = tuple[FilteredValues, ...]


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
        return (_filtered(raw, kind),)
    if isinstance(raw, list) and raw and all(isinstance(entry, dict) for entry in raw):
        return tuple(_filtered(entry, kind) for entry in raw)
    return (FilteredValues(None, _values(raw, kind)),)


def evaluate(setting: Setting, tensor: str, t: float) -> Value | None:
    """Return a tensor's value, None where the setting says nothing of it.

    Args:
        tensor: the tensor's name, which filters are searched in.
        t: depth in [0, 1] of the tensor's layer within its slice (see `depth`), 0 outside the
            layers.
    """
    for filtered in setting:
        if filtered.filter in (None, "*") or str(filtered.filter) in tensor:
            return _interpolate(filtered.values, t)
    return None


def depth(index: int, layers: int) -> float:
    """Return `t` of layer `index` of a slice of `layers` layers; 1 for the only layer of one."""
    return index / (layers - 1) if layers > 1 else 1.0


def _interpolate(values: tuple[Value, ...], t: float) -> Value | None:
    """Interpolate linearly between the gradient's entries; booleans and texts change at entries."""
    if not values:
        return None
    place = t * (len(values) - 1)
    low = int(place)
    first, second = values[low], values[min(len(values) - 1, low + 1)]
    if isinstance(first, bool | str) or isinstance(second, str):
        return first
    share = place - low
    return (1 - share) * first + share * second


def _filtered(raw: Mapping[str, Any], kind: Kind) -> FilteredValues:
    if "value" not in raw or not set(raw) <= {"filter", "value"}:
        raise ValueError(f"{quoted(raw)} is not of the form {{filter: TEXT, value: VALUE}}")
    name = raw.get("filter")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"filter {quoted(name)} is not a text")
    return FilteredValues(name, _values(raw["value"], kind))


def _values(raw: Any, kind: Kind) -> tuple[Value, ...]:
    entries = raw if isinstance(raw, list) else [raw]
    try:
        values = tuple(TypeAdapter(kind).validate_python(entry) for entry in entries)
    except ValidationError:
        what = {bool: "true or false", str: "a text"}.get(kind, "a number")
        raise ValueError(
            f"{quoted(raw)} is neither {what}, nor a list of such, nor a list of {{filter, value}}"
        ) from None
    if not all(isinstance(value, str) or math.isfinite(value) for value in values):
        raise ValueError(f"{quoted(raw)} is not finite")
    return values


@dataclass(frozen=True)
class TensorPosition:
    """A tensor's name and depth, by which a setting gives it its value.

    Attributes:
        name: the name that filters are searched in.
        layer: the number in the name, None outside the layers.
        suffix: the rest of the name after the number, `self_attn.q_proj.weight`.
        t: the depth in [0, 1] at which gradients are evaluated.
    """

    name: str
    layer: int | None
    suffix: str
    t: float


def write_setting(
    wanted: Sequence[Value | None], positions: Sequence[TensorPosition], default: Value | None
) -> Any:
    """Write the shortest setting, as YAML data, that gives each tensor its value.

    Layers get a gradient with one entry each; tensors outside the layers, which mergekit evaluates
    at depth 0, get filters that come first. The result is evaluated as mergekit does and must give
    the values bit for bit.

    Args:
        wanted: a value for each position; None where any value will do.
        default: mergekit's, None where the parameter must be given.

    Returns:
        YAML data; None where the default will do for all.

    Raises:
        InputError: filters cannot tell two tensors apart that have different values.
    """
    known = [value for value in wanted if value is not None]
    if not known:
        return 1.0 if default is None else None
    values = [known[0] if value is None else value for value in wanted]
    if len(set(values)) == 1:
        return values[0]
    outside = [
        {"filter": position.name, "value": value}
        for position, value in zip(positions, values, strict=True)
        if position.layer is None
    ]
    written = [*outside, *_layer_entries(values, positions)]
    parsed = parse_setting(written, _kind(values))
    for position, value in zip(positions, values, strict=True):
        if evaluate(parsed, position.name, position.t) != value:
            raise inexpressible(f"filters on names do not tell {position.name} from other tensors")
    return written


def inexpressible(reason: str) -> InputError:
    """Make the error that mergekit has no words for a recipe."""
    return InputError(f"mergekit cannot express this recipe: {reason}")


def _layer_entries(
    values: Sequence[Value], positions: Sequence[TensorPosition]
) -> Iterator[dict[str, Any]]:
    """Yield entries for the tensors in layers: the commonest list of values last, unfiltered."""
    # 1. the values of each tensor name, layer by layer
    columns: dict[str, dict[int, tuple[Value, TensorPosition]]] = defaultdict(dict)
    for position, value in zip(positions, values, strict=True):
        if position.layer is not None:
            columns[position.suffix][position.layer] = (value, position)
    lists = {suffix: tuple(v for v, _ in column.values()) for suffix, column in columns.items()}
    common = Counter(lists.values()).most_common(1)[0][0]
    # 2. names by their first part (`self_attn`); one filter for all of them if they agree
    components: dict[str, list[str]] = defaultdict(list)
    for suffix in columns:
        components[suffix.partition(".")[0]].append(suffix)
    for suffixes in components.values():
        if len({lists[suffix] for suffix in suffixes}) > 1:
            for suffix in suffixes:
                yield from _column_entries(columns[suffix], f".{suffix}")
        elif lists[suffixes[0]] != common:
            component, dot, _ = suffixes[0].partition(".")
            yield from _column_entries(columns[suffixes[0]], f".{component}{dot}")
    # 3. what the most names have in common, for all that no filter met
    yield from _column_entries(next(c for n, c in columns.items() if lists[n] == common), None)


def _column_entries(
    column: Mapping[int, tuple[Value, TensorPosition]], component: str | None
) -> Iterator[dict[str, Any]]:
    """Yield a scalar or a gradient, after a filter for each layer where its rounding would show."""
    values = [value for value, _ in column.values()]
    named = {"filter": component} if component else {}
    if len(set(values)) == 1:
        yield {**named, "value": values[0]}
        return
    gradient = parse_setting(values, _kind(values))
    for layer, (value, position) in column.items():
        if evaluate(gradient, position.name, position.t) != value:
            prefix = position.name.partition(f".{layer}.")[0]
            yield {"filter": f"{prefix}.{layer}{component or '.'}", "value": value}
    yield {**named, "value": values}


def _kind(values: Sequence[Value]) -> type[bool] | type[float]:
    return bool if isinstance(values[0], bool) else float
