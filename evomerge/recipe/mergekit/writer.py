"""A recipe as the YAML that mergekit turns into the same tensors, for recipes it can express.

mergekit has one method a file; within it every parameter may differ from tensor to tensor. Layers
get a gradient with one entry each; tensors outside the layers, which mergekit evaluates at depth 0,
get filters that come first. The file is checked as it is written: every parameter of every tensor
is evaluated as mergekit does and must be the recipe's, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from evomerge.errors import InputError
from evomerge.methods.registry import find_method
from evomerge.recipe.mergekit.settings import (
    METHODS,
    RANDOM,
    Value,
    depth,
    evaluate,
    parse_setting,
)
from evomerge.recipe.recipe import BASE, Merge, Recipe, merge_name

if TYPE_CHECKING:
    from evomerge.models.layout import Layout

_MASKS = (
    "its masks are random: mergekit draws others, and rescales survivors to the task vector's L1 "
    "norm where evomerge divides by the density, so the tensors will not be the same"
)
_TRIM = (
    "of entries with equal magnitude at the trim threshold, which fp16 and bf16 finetunes have, "
    "mergekit keeps arbitrary ones and evomerge the first; these entries may differ"
)
_COPIES = (
    "tensors that the recipe copies from an expert are base + (expert − base), the same up to "
    "rounding in float32"
)


@dataclass(frozen=True)
class MergekitFile:
    """A file for `mergekit-yaml`, and in what its result may differ from evomerge's."""

    text: str
    caveats: tuple[str, ...]


@dataclass
class _Tensor:
    """What the file must say of one tensor; parameters that do not matter for it are not held.

    Attributes:
        t: the tensor's depth, as mergekit evaluates gradients.
        layer: None outside the layers.
        per_model: (source, parameter) → value.
    """

    name: str
    t: float
    layer: int | None
    component: str
    per_model: dict[tuple[str, str], Value] = field(default_factory=dict)
    shared: dict[str, Value] = field(default_factory=dict)


def to_mergekit(
    recipe: Recipe, layout: Layout, models: Mapping[str, str], dtype: str
) -> MergekitFile:
    """Write a recipe as a mergekit 0.1.5 file.

    Args:
        layout: the base model's.
        models: source name → folder or hub id, as the file shall name it.
        dtype: what the result is rounded to, `bfloat16`; the arithmetic is in float32.

    Raises:
        InputError: mergekit cannot express the recipe; says why.
    """
    _check_path(recipe, layout)
    treatments = list(_treatments(recipe, layout))
    method, pair = _method([treatment for _, treatment in treatments])
    for tensor, treatment in treatments:
        _fill(tensor, treatment, method, pair)
    tensors = [tensor for tensor, _ in treatments]
    data: dict[str, Any] = {"merge_method": method}
    if METHODS[method].base != "ignored":
        data["base_model"] = _spec(models, pair[0] if pair else BASE)
    data["models"] = [
        _without_empty({"model": _spec(models, name), "parameters": _of_model(name, tensors)})
        for name in _inputs(recipe, tensors, method, pair)
    ]
    names = dict.fromkeys(name for tensor in tensors for name in tensor.shared)
    shared = {name: _setting([t.shared.get(name) for t in tensors], tensors) for name in names}
    data |= _without_empty({"parameters": shared})
    data |= {"dtype": "float32", "out_dtype": dtype}
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100)
    return MergekitFile(text, tuple(_caveats(treatments, method, pair)))


@dataclass(frozen=True)
class _Treatment:
    """How the recipe makes one tensor: by a method, or as a source's own times `scale`."""

    method: str | None
    experts: Mapping[str, Mapping[str, float]]
    parameters: Mapping[str, Any]
    source: str = BASE
    scale: float = 1.0


def _treatments(recipe: Recipe, layout: Layout) -> Iterator[tuple[_Tensor, _Treatment]]:
    """Every tensor with its treatment; tied names as the tensor they share."""
    rules = {(m.slot, m.group): _complete(m, recipe) for m in recipe.merges}
    names = [(name, layout.tensor(name)) for name in (*layout.names, *layout.tied)]
    own = {merge.group for merge in recipe.merges} & {spec.suffix for _, spec in names}
    split = {suffix.partition(".")[0] for suffix in own}
    for name, spec in names:
        rule = next((rules[spec.layer, g] for g in spec.groups if (spec.layer, g) in rules), None)
        if spec.layer is None:
            yield _Tensor(name, 0.0, None, ""), rule or _Treatment(None, {}, {})
        else:
            first = spec.suffix.partition(".")[0]
            component = spec.suffix if first in split else first
            place = _Tensor(name, depth(spec.layer, layout.layers), spec.layer, component)
            yield place, rule or _Treatment(None, {}, {}, recipe.path[spec.layer].source)


def _complete(merge: Merge, recipe: Recipe) -> _Treatment:
    """A merge with the method's defaults filled in; passthrough becomes a copy."""
    method = find_method(merge.method, "recipe")
    defaults = {p.name: p.default for p in method.parameters.values()}
    shared = {n: v for n, v in defaults.items() if not method.parameters[n].per_expert}
    parameters = {**shared, **merge.parameters}
    if method.name == "passthrough":
        source = next(iter(merge.experts), BASE)
        return _Treatment(None, {}, {}, source, float(parameters["scale"]))
    own = {n: float(v) for n, v in defaults.items() if method.parameters[n].per_expert}
    ordered = [name for name in recipe.sources if name in merge.experts]
    experts = {name: {**own, **merge.experts[name]} for name in ordered}
    method.arguments(merge.parameters, experts, f"recipe: {merge_name(merge)}")
    return _Treatment(method.name, experts, parameters)


def _method(treatments: Sequence[_Treatment]) -> tuple[str, tuple[str, str] | None]:
    """The file's one method and, for slerp, the two models it joins."""
    methods = sorted({t.method for t in treatments if t.method is not None})
    if len(methods) > 1:
        raise _impossible(f"it merges by {' and '.join(methods)}, and a file has one method")
    if not methods:
        whole = {(t.source, t.scale) for t in treatments}
        if len(whole) == 1 and whole.pop()[1] == 1:
            return "passthrough", None
        return "linear", None
    [method] = methods
    if method not in METHODS:
        raise _impossible(f"evomerge's {method} is not written for mergekit")
    if method != "slerp":
        return method, None
    pairs = {(BASE, *t.experts)[-2:] for t in treatments if t.method}
    if len(pairs) > 1:
        raise _impossible("it joins different pairs of models by slerp, and a file has one pair")
    first, second = pairs.pop()
    return method, (first, second)


def _fill(
    tensor: _Tensor, treatment: _Treatment, method: str, pair: tuple[str, str] | None
) -> None:
    """Put what mergekit must be told of one tensor into it."""
    if treatment.method is not None:
        tensor.per_model = {
            (expert, name): value
            for expert, values in treatment.experts.items()
            for name, value in values.items()
        }
        tensor.shared = dict(treatment.parameters)
        if method == "linear":
            tensor.per_model[BASE, "weight"] = tensor.shared.pop("base_weight")
        return
    source, scale = treatment.source, treatment.scale
    if method == "linear":
        tensor.per_model[source, "weight"] = scale
        tensor.shared["normalize"] = False
        return
    if scale != 1:
        raise _impossible(f"it scales {tensor.name} by {scale:g}, which {method} has no word for")
    if method == "passthrough":
        tensor.per_model[source, "scale"] = 1.0
    elif pair is not None:
        if source not in pair:
            raise _impossible(f"it copies {tensor.name} from {source}, which is not of the pair")
        tensor.shared["t"] = float(pair.index(source))
    elif source != BASE:
        tensor.per_model[source, "weight"] = 1.0
        tensor.shared["lambda"] = 1.0
        if "density" in METHODS[method].per_model:
            tensor.per_model[source, "density"] = 1.0


def _caveats(
    treatments: Sequence[tuple[_Tensor, _Treatment]], method: str, pair: tuple[str, str] | None
) -> Iterator[str]:
    """In what mergekit's result differs although the file says the same."""
    copied = {t.source for _, t in treatments if t.method is None}
    if method in RANDOM:
        yield _MASKS
    if method == "ties" and any(0 < d < 1 for d in _densities(treatments)):
        yield _TRIM
    if METHODS[method].base == "needed" and pair is None and copied - {BASE}:
        yield _COPIES
    donor = pair[0] if pair else copied.pop() if method == "passthrough" else BASE
    if donor != BASE:
        yield f"config and tokenizer are taken from {donor}, not from the base"


def _densities(treatments: Sequence[tuple[_Tensor, _Treatment]]) -> Iterator[float]:
    return (v["density"] for _, t in treatments for v in t.experts.values())


def _inputs(
    recipe: Recipe, tensors: list[_Tensor], method: str, pair: tuple[str, str] | None
) -> list[str]:
    """The models the file lists, in the recipe's order; completes the weights they lack.

    A model without a weight for a tensor takes no part in it: its weight there is 0.
    """
    if pair is not None:
        return list(pair)
    used = {source for tensor in tensors for source, _ in tensor.per_model}
    if METHODS[method].base == "input":
        used.add(BASE)
    inputs = [source for source in recipe.sources if source in used]
    if "weight" in METHODS[method].per_model:
        for tensor in tensors:
            for source in inputs:
                tensor.per_model.setdefault((source, "weight"), 0.0)
    return inputs


def _of_model(source: str, tensors: list[_Tensor]) -> dict[str, Any]:
    own = dict.fromkeys(p for t in tensors for s, p in t.per_model if s == source)
    settings = {
        name: _setting([t.per_model.get((source, name)) for t in tensors], tensors) for name in own
    }
    return {} if settings == {"scale": 1.0} else settings


def _setting(wanted: list[Value | None], tensors: list[_Tensor]) -> Any:
    """The shortest setting, as YAML data, that gives each tensor its value; None: any value."""
    known = [value for value in wanted if value is not None]
    values = [known[0] if value is None else value for value in wanted]
    if len(set(values)) == 1:
        return values[0]
    outside = [
        {"filter": tensor.name, "value": value}
        for tensor, value in zip(tensors, values, strict=True)
        if tensor.layer is None
    ]
    setting = [*outside, *_layers(values, tensors)]
    parsed = parse_setting(setting, _kind(values))
    for tensor, value in zip(tensors, values, strict=True):
        if evaluate(parsed, tensor.name, tensor.t) != value:
            raise _impossible(f"filters on names do not tell {tensor.name} from other tensors")
    return setting


def _layers(values: list[Value], tensors: list[_Tensor]) -> Iterator[dict[str, Any]]:
    """Entries for the tensors in layers: the commonest list of values last, without a filter."""
    columns: dict[str, dict[int, tuple[Value, _Tensor]]] = {}
    for tensor, value in zip(tensors, values, strict=True):
        if tensor.layer is not None:
            columns.setdefault(tensor.component, {})[tensor.layer] = (value, tensor)
    lists = {name: tuple(v for v, _ in column.values()) for name, column in columns.items()}
    common = Counter(lists.values()).most_common(1)[0][0]
    for component, column in columns.items():
        if lists[component] != common:
            inner = any(f".{component}." in tensor.name for _, tensor in column.values())
            yield from _column(column, f".{component}." if inner else f".{component}")
    yield from _column(next(c for n, c in columns.items() if lists[n] == common), None)


def _column(
    column: Mapping[int, tuple[Value, _Tensor]], component: str | None
) -> Iterator[dict[str, Any]]:
    """One value a layer: a scalar or a gradient, after the layers where its rounding shows."""
    values = [value for value, _ in column.values()]
    named = {"filter": component} if component else {}
    if len(set(values)) == 1:
        yield {**named, "value": values[0]}
        return
    gradient = parse_setting(values, _kind(values))
    for layer, (value, tensor) in column.items():
        if evaluate(gradient, tensor.name, tensor.t) != value:
            prefix = tensor.name.partition(f".{layer}.")[0]
            yield {"filter": f"{prefix}.{layer}{component or '.'}", "value": value}
    yield {**named, "value": values}


def _kind(values: Sequence[Value]) -> type[bool] | type[float]:
    return bool if isinstance(values[0], bool) else float


def _check_path(recipe: Recipe, layout: Layout) -> None:
    straight = [slot.layer for slot in recipe.path] == list(range(layout.layers))
    if not straight or any(slot.scale != 1 for slot in recipe.path):
        raise _impossible("its path reorders, repeats, drops or scales layers")


def _spec(models: Mapping[str, str], name: str) -> str:
    spec = models[name]
    if "+" in spec or ("@" in spec and spec.startswith("/")):
        raise _impossible(f"mergekit reads '+' and '@' in the path {spec} as parts of a hub id")
    return spec


def _without_empty(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value != {}}


def _impossible(reason: str) -> InputError:
    return InputError(f"mergekit cannot express this recipe: {reason}")
