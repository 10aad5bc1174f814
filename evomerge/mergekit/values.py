"""The shortest mergekit setting that gives every tensor its value, checked as it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.common.errors import InputError
from evomerge.mergekit.settings import Value, evaluate, parse_setting


@dataclass(frozen=True)
class Position:
    """A tensor as a setting sees it.

    Attributes:
        name: what filters are searched in.
        layer: the number in the name, None outside the layers.
        suffix: what follows the number in the name, `self_attn.q_proj.weight`.
        t: the depth at which gradients are evaluated.
    """

    name: str
    layer: int | None
    suffix: str
    t: float


def setting(wanted: Sequence[Value | None], spots: Sequence[Position]) -> Any:
    """The setting, as YAML data, that gives each spot its value; None: any value.

    Layers get a gradient with one entry each; tensors outside the layers, which mergekit evaluates
    at depth 0, get filters that come first. The result is evaluated as mergekit does and must give
    the values bit for bit.

    Args:
        wanted: at least one is not None.

    Raises:
        InputError: filters cannot tell two tensors apart that have different values.
    """
    known = [value for value in wanted if value is not None]
    values = [known[0] if value is None else value for value in wanted]
    if len(set(values)) == 1:
        return values[0]
    outside = [
        {"filter": spot.name, "value": value}
        for spot, value in zip(spots, values, strict=True)
        if spot.layer is None
    ]
    written = [*outside, *_layers(values, spots)]
    parsed = parse_setting(written, _kind(values))
    for spot, value in zip(spots, values, strict=True):
        if evaluate(parsed, spot.name, spot.t) != value:
            raise impossible(f"filters on names do not tell {spot.name} from other tensors")
    return written


def impossible(reason: str) -> InputError:
    """What is raised where mergekit has no words for a recipe."""
    return InputError(f"mergekit cannot express this recipe: {reason}")


def _layers(values: Sequence[Value], spots: Sequence[Position]) -> Iterator[dict[str, Any]]:
    """Entries for the tensors in layers: the commonest list of values last, without a filter."""
    columns: dict[str, dict[int, tuple[Value, Position]]] = {}
    for spot, value in zip(spots, values, strict=True):
        if spot.layer is not None:
            columns.setdefault(spot.suffix, {})[spot.layer] = (value, spot)
    lists = {suffix: tuple(v for v, _ in column.values()) for suffix, column in columns.items()}
    common = Counter(lists.values()).most_common(1)[0][0]
    for suffixes in _by_component(columns):
        if len({lists[suffix] for suffix in suffixes}) > 1:
            for suffix in suffixes:
                yield from _column(columns[suffix], f".{suffix}")
        elif lists[suffixes[0]] != common:
            component, dot, _ = suffixes[0].partition(".")
            yield from _column(columns[suffixes[0]], f".{component}{dot}")
    yield from _column(next(c for n, c in columns.items() if lists[n] == common), None)


def _by_component(suffixes: Iterable[str]) -> Iterator[list[str]]:
    """Names within a layer by their first part, `self_attn`."""
    groups: dict[str, list[str]] = {}
    for suffix in suffixes:
        groups.setdefault(suffix.partition(".")[0], []).append(suffix)
    yield from groups.values()


def _column(
    column: Mapping[int, tuple[Value, Position]], component: str | None
) -> Iterator[dict[str, Any]]:
    """One value a layer: a scalar or a gradient, after the layers where its rounding shows."""
    values = [value for value, _ in column.values()]
    named = {"filter": component} if component else {}
    if len(set(values)) == 1:
        yield {**named, "value": values[0]}
        return
    gradient = parse_setting(values, _kind(values))
    for layer, (value, spot) in column.items():
        if evaluate(gradient, spot.name, spot.t) != value:
            prefix = spot.name.partition(f".{layer}.")[0]
            yield {"filter": f"{prefix}.{layer}{component or '.'}", "value": value}
    yield {**named, "value": values}


def _kind(values: Sequence[Value]) -> type[bool] | type[float]:
    return bool if isinstance(values[0], bool) else float
