"""Write a recipe as the YAML that mergekit turns into the same tensors, if it can express it.

mergekit has one method a document; within it every parameter may differ from tensor to tensor.
Layers that follow each other are one slice; a path that takes every layer in order needs none.
Copied layers are passed through, where each slice, and the embeddings with the first and the head
with the last, come from one model; else they are a linear merge in which one model has weight 1. A
recipe of several methods becomes a file of several merges for mergekit-multi: one for each method,
and a last that takes every tensor from its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import yaml

from evomerge.config import TokenizerConfig, TokenRow
from evomerge.mergekit.methods import FORMS, Form, Parameter
from evomerge.mergekit.settings import TensorPosition, Value, depth, inexpressible, write_setting
from evomerge.mergekit.tensor_settings import MergeMode, Tensors, TensorSettings, tensor_settings
from evomerge.recipe.recipe import BASE, Recipe

if TYPE_CHECKING:
    from evomerge.models.layout import Layout

ModelSpec = str | tuple[str, str]
"""A model's folder, hub id or stage; of an adapter, the base's and its own."""

_STAGES = "the file has several merges, which mergekit-multi runs one after the other"
_MASKS = (
    "its masks are random: mergekit draws others, and where evomerge divides survivors by the "
    "density it rescales them to the task vector's L1 norm, so the tensors will not be the same"
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
    """A file for mergekit, and where its result may differ from evomerge's.

    Attributes:
        text: the YAML.
        caveats: differences, one sentence each, without a full stop.
        stages: whether it holds several merges.
        adapters: whether it names models with adapters on them.
    """

    text: str
    caveats: tuple[str, ...]
    stages: bool = False
    adapters: bool = False

    @property
    def command(self) -> str:
        """The command by which mergekit makes `../again` of it."""
        cache = " --lora-merge-cache ../again-adapters" * self.adapters
        if self.stages:
            stages = "-I ../again-stages --out-path ../again"
            return f"mergekit-multi mergekit.yaml {stages}{cache}"
        return f"mergekit-yaml mergekit.yaml ../again{cache}"


def to_mergekit(
    recipe: Recipe, layout: Layout, models: Mapping[str, ModelSpec], dtype: str
) -> MergekitFile:
    """Write a recipe as a mergekit 0.1.5 file.

    Args:
        layout: the base model's.
        models: source name → where it is, as the file shall name it.
        dtype: the dtype that the result is rounded to, `bfloat16`; the arithmetic is in float32.

    Raises:
        InputError: mergekit cannot express the recipe; says why.
    """
    _check_input_scales(recipe)
    if recipe.tokenizer is not None:
        return _with_tokenizer(recipe, recipe.tokenizer, layout, models, dtype)
    tensors = tensor_settings(recipe, layout)
    layers = [slot.layer for slot in recipe.path]
    specs = {name: models[name] for name in recipe.sources}
    # One document, if its method can leave the copied tensors as they are; else several stages.
    modes = list(dict.fromkeys(s.mode for _, _, s in tensors if s.mode is not None))
    copies = [s for _, _, s in tensors if s.mode is None]
    hosts = [mode for mode in modes if all(mode.can_copy(copy) for copy in copies)]
    if len(modes) < 2 and hosts == modes:
        document = _document(tensors, layers, specs, layout, layout.layers)
        return MergekitFile(_yaml(document.data(dtype)), tuple(document.caveats()))
    return _in_stages(tensors, layers, specs, layout, hosts[0] if hosts else None, dtype)


def _with_tokenizer(
    recipe: Recipe,
    tokenizer: TokenizerConfig,
    layout: Layout,
    models: Mapping[str, ModelSpec],
    dtype: str,
) -> MergekitFile:
    """Write a recipe over matched vocabularies: one merge, of which every model is a part.

    Raises:
        InputError: it would take several merges, or leaves out a model that may give rows.
    """
    plain = to_mergekit(recipe.model_copy(update={"tokenizer": None}), layout, models, dtype)
    data = yaml.safe_load(plain.text) if not plain.stages else {}
    specs = {name: models[name] for name in recipe.sources}
    wholes = [data.get("models", []), *(part["sources"] for part in data.get("slices", []))]
    parts = [{entry["model"] for entry in entries} for entries in wholes if entries]
    if "models" in data:
        parts[0].add(data.get("base_model"))
    if plain.stages or any(_text(spec) not in part for part in parts for spec in specs.values()):
        raise inexpressible(
            "models.tokenizer matches the vocabularies of all models, and mergekit those of the "
            "models in one merge alone; this recipe takes several merges, or leaves a model out"
        )
    named = data.get("base_model") == _text(specs[BASE])
    given = "base" if named else "mean"
    if tokenizer.missing != given:
        raise inexpressible(
            f"models.tokenizer.missing is {tokenizer.missing}, and mergekit does what {given} "
            "means, since this merge has "
            + ("a base_model" if given == "base" else "no base_model")
        )
    # 1. models by their places; a row that no source is named for needs no word
    rows = {
        token: {"source": _row_source(row, specs), "force": row.force}
        for token, row in tokenizer.tokens.items()
        if row.source is not None
    }
    source = tokenizer.source
    written: dict[str, Any] = {"source": _text(specs[source]) if source in specs else source}
    written |= _without_empty(tokens=rows)
    if tokenizer.pad_to_multiple_of is not None:
        written["pad_to_multiple_of"] = tokenizer.pad_to_multiple_of
    data["tokenizer"] = written
    # 2. the template, by its name or whole
    if tokenizer.chat_template is not None:
        data["chat_template"] = tokenizer.chat_template
    return replace(plain, text=_yaml(data))


def _row_source(row: TokenRow, specs: Mapping[str, ModelSpec]) -> Any:
    if isinstance(row.source, str):
        return _text(specs[row.source])
    assert row.source is not None
    data = row.source.model_dump(exclude_none=True)
    return data | ({"model": _text(specs[data["model"]])} if "model" in data else {})


def _text(spec: ModelSpec) -> str:
    return spec if isinstance(spec, str) else "+".join(spec)


def _check_input_scales(recipe: Recipe) -> None:
    for index, slot in enumerate(recipe.path):
        if slot.scale != 1:
            raise inexpressible(
                f"path[{index}] multiplies its input by {slot.scale:g}, all that earlier layers "
                "gave, and mergekit's scale multiplies weights, whose sum with that it is not; "
                "recipe.json says it (--format recipe)"
            )


def _in_stages(
    tensors: Sequence[tuple[int | None, Any, TensorSettings]],
    layers: Sequence[int],
    specs: Mapping[str, ModelSpec],
    layout: Layout,
    host: MergeMode | None,
    dtype: str,
) -> MergekitFile:
    """Write a merge for each mode, the copies in `host`'s or their own, and one that chooses."""
    mode_of = [settings.mode or host for _, _, settings in tensors]
    stages = {mode: f"evomerge-stage-{i}" for i, mode in enumerate(dict.fromkeys(mode_of), 1)}
    # 1. the stages; in each, anything will do for the tensors of the others
    texts, caveats = [], {_STAGES: None}
    for stage, name in stages.items():
        own: Tensors = [
            (slot, spec, settings if mode == stage else None)
            for (slot, spec, settings), mode in zip(tensors, mode_of, strict=True)
        ]
        document = _document(own, layers, specs, layout, layout.layers)
        texts.append(_yaml({"name": name, **document.data("float32")}))
        caveats |= dict.fromkeys(document.caveats())
    # 2. the result, which copies every tensor from its stage; the first serves as the base
    first = next(iter(stages.values()))
    names = {BASE if name == first else name: name for name in stages.values()}
    chosen: Tensors = [
        (slot, spec, TensorSettings(None, source=BASE if stages[mode] == first else stages[mode]))
        for (slot, spec, _), mode in zip(tensors, mode_of, strict=True)
    ]
    document = _document(chosen, range(len(layers)), names, layout, len(layers))
    texts.append(_yaml(document.data(dtype)))
    return MergekitFile("---\n".join(texts), tuple(caveats), stages=True)


@dataclass
class _Tensor:
    """One tensor of a document.

    Attributes:
        inner: its position as the models name it; settings of one model go by that name.
        outer: its position as the result names it; settings of all models go by that one.
        piece: index in the document's path.
        settings: None where anything will do.
    """

    inner: TensorPosition
    outer: TensorPosition
    piece: int
    settings: TensorSettings | None

    def of_model(self, source: str, parameter: str) -> Value | None:
        """Return a model's parameter, None where any value will do."""
        return self.settings.per_model.get((source, parameter)) if self.settings else None


@dataclass(frozen=True)
class MergekitDocument:
    """One merge: a method, models or slices, and settings for every tensor.

    Attributes:
        specs: source name → where it is, the base first.
        depth: layers that each model has.
        path: ranges of consecutive layers, in the result's order.
        sources: the source of each range, where layers are passed through whole; else None.
    """

    specs: Mapping[str, ModelSpec]
    depth: int
    mode: MergeMode
    path: Sequence[range]
    sources: Sequence[str] | None
    tensors: Sequence[_Tensor]

    @property
    def form(self) -> Form:
        """The parameters that mergekit's method takes."""
        return FORMS[self.mode.method]

    @property
    def sliced(self) -> bool:
        """True where the path is not every layer in order."""
        return list(self.path) != [range(self.depth)]

    @cached_property
    def inputs(self) -> list[str]:
        """The models that take part, in the recipe's order."""
        if self.mode.models is not None:
            return list(self.mode.models)
        settings = [tensor.settings for tensor in self.tensors if tensor.settings]
        used = {source for own in settings for source, _ in own.per_model}
        if self.mode.method == "linear" or (self.form.base == "needed" and self.sliced):
            used.add(BASE)
        return [source for source in self.specs if source in used]

    @property
    def base_model(self) -> str | None:
        """The source whose config and tokenizer mergekit takes; None where it needs none."""
        models = self.mode.models
        if models is not None and self.form.base != "needed":
            return BASE if BASE in models else None
        if self.mode.method == "passthrough" and not self.sliced:
            return None
        return models[0] if models else BASE

    def data(self, dtype: str) -> dict[str, Any]:
        """Return the document as YAML data: float32 arithmetic, rounded to `dtype`."""
        data: dict[str, Any] = {"merge_method": self.mode.method}
        if self.base_model is not None:
            data["base_model"] = self._spec(self.base_model)
        if self.sliced:
            data["slices"] = list(self._slices())
            data |= _without_empty(parameters=_hoisted(data["slices"]))
        else:
            data["models"] = [
                _without_empty(
                    model=self._spec(name), parameters=self._of_model(name, self.tensors)
                )
                for name in self.inputs
            ]
            data |= _without_empty(parameters=self._of_all(self.tensors))
        return data | {"dtype": "float32", "out_dtype": dtype}

    def caveats(self) -> Iterator[str]:
        """Yield where mergekit's result differs although the file says the same."""
        settings = [tensor.settings for tensor in self.tensors if tensor.settings]
        kept = [own.shared.get("select_topk", 1.0) for own in settings]
        for own in settings:
            kept += [value for (_, name), value in own.per_model.items() if name == "density"]
        if self.form.random:
            yield _MASKS
        elif any(0 < float(value) < 1 for value in kept):
            yield _TRIM
        copied = {own.source for own in settings}  # BASE where a tensor is merged
        if self.form.base == "needed" and self.mode.models is None and copied - {BASE}:
            yield _COPIES
        donors = self.inputs if self.base_model is None else [self.base_model]
        if donors != [BASE]:
            yield f"config and tokenizer are taken from {' or '.join(donors)}, not from the base"

    def _spec(self, name: str) -> str:
        """Name a source as mergekit reads it, `base+adapter` for an adapter."""
        found = self.specs[name]
        specs = (found,) if isinstance(found, str) else found
        for spec in specs:
            if "+" in spec or ("@" in spec and spec.startswith("/")):
                raise inexpressible(
                    f"mergekit reads '+' and '@' in the path {spec} as parts of a hub id"
                )
        return "+".join(specs)

    def _slices(self) -> Iterator[dict[str, Any]]:
        for index, layers in enumerate(self.path):
            own = [tensor for tensor in self.tensors if tensor.piece == index]
            sources = [
                _without_empty(
                    model=self._spec(name),
                    layer_range=[layers.start, layers.stop],
                    parameters=self._of_model(name, own),
                )
                for name in (self.inputs if self.sources is None else [self.sources[index]])
            ]
            yield _without_empty(sources=sources, parameters=self._of_all(own))

    def _of_model(self, source: str, tensors: Sequence[_Tensor]) -> dict[str, Any]:
        settings = [tensor.settings for tensor in self.tensors if tensor.settings]
        names = dict.fromkeys(p for own in settings for s, p in own.per_model if s == source)
        wanted = {name: [t.of_model(source, name) for t in tensors] for name in names}
        found = _written(wanted, [tensor.inner for tensor in tensors], self.form.per_model)
        return {} if found == {"scale": 1.0} else found

    def _of_all(self, tensors: Sequence[_Tensor]) -> dict[str, Any]:
        settings = [tensor.settings for tensor in self.tensors if tensor.settings]
        names = dict.fromkeys(name for own in settings for name in own.shared)
        wanted = {
            name: [t.settings.shared.get(name) if t.settings else None for t in tensors]
            for name in names
        }
        return _written(wanted, [tensor.outer for tensor in tensors], self.form.shared)


def _document(
    tensors: Tensors,
    layers: Sequence[int],
    specs: Mapping[str, ModelSpec],
    layout: Layout,
    depth: int,
) -> MergekitDocument:
    """Make the document of tensors that are all of one mode, or copies.

    Args:
        layers: the models' layer that each slot takes.
        layout: names the tensors; the models have `depth` layers.
    """
    # 1. the mode; copies alone are passed through, or else a linear merge with weights 0 and 1
    modes = {s.mode for _, _, s in tensors if s is not None and s.mode is not None}
    slots = None if modes else _sources_of_slots(tensors, len(layers))
    [mode] = modes or {MergeMode("linear") if slots is None else MergeMode("passthrough")}
    # 2. the path, in ranges of consecutive layers
    starts = _starts(layers, slots)
    ends = [*starts[1:], len(layers)]
    path = [range(layers[a], layers[b - 1] + 1) for a, b in zip(starts, ends, strict=True)]
    sources = None if slots is None else [slots[start] for start in starts]
    # 3. the tensors where mergekit makes them, copies told in the mode's terms
    placed = list(_placed(tensors, path, layout))
    for tensor in placed:
        tensor.settings = tensor.settings and tensor.settings.merged_by(mode)
    document = MergekitDocument(specs, depth, mode, path, sources, placed)
    # 4. a model without a weight for a tensor takes no part in it
    if "weight" in FORMS[mode.method].per_model and mode.models is None:
        for tensor in placed:
            if tensor.settings is not None:
                own = dict(tensor.settings.per_model)
                for source in document.inputs:
                    own.setdefault((source, "weight"), 0.0)
                tensor.settings = replace(tensor.settings, per_model=own)
    return document


def _sources_of_slots(tensors: Tensors, slots: int) -> list[str] | None:
    """Find the one source of each slot; None where copies cannot be passed through.

    mergekit takes embeddings from the first slice's model, the last norm and the head from the
    last one's.
    """
    sources: list[set[str]] = [set() for _ in range(slots)]
    for slot, spec, settings in tensors:
        if settings is not None:
            end = 0 if spec.group == "embeddings" else -1
            sources[end if slot is None else slot].add(settings.source)
    if any(len(own) > 1 for own in sources):
        return None
    return [next(iter(own), BASE) for own in sources]


def _starts(layers: Sequence[int], sources: Sequence[str] | None) -> list[int]:
    """List the slots at which a range of consecutive layers, of one source if given, begins."""
    return [
        slot
        for slot, layer in enumerate(layers)
        if slot == 0
        or layer != layers[slot - 1] + 1
        or (sources is not None and sources[slot] != sources[slot - 1])
    ]


def _placed(tensors: Tensors, path: Sequence[range], layout: Layout) -> Iterator[_Tensor]:
    """Yield each tensor where mergekit makes it; tied names beside the tensor they share.

    Embeddings come with the first range, the last norm and the head with the last.
    """
    where = [(i, n, layers) for i, layers in enumerate(path) for n in range(len(layers))]
    outside = {}
    for slot, spec, settings in tensors:
        if slot is None:
            position = TensorPosition(spec.name, None, "", 0.0)
            piece = 0 if spec.group == "embeddings" else len(path) - 1
            yield _Tensor(position, position, piece, settings)
            outside[spec.name] = settings
            continue
        piece, n, layers = where[slot]
        t = depth(n, len(layers))
        inner, outer = (
            TensorPosition(f"{layout.prefix}.{layer}.{spec.suffix}", layer, spec.suffix, t)
            for layer in (layers[n], slot)
        )
        yield _Tensor(inner, outer, piece, settings)
    for name, shared in layout.tied.items():
        position = TensorPosition(name, None, "", 0.0)
        yield _Tensor(position, position, len(path) - 1, outside[shared])


def _written(
    wanted: Mapping[str, Sequence[Value | None]],
    positions: Sequence[TensorPosition],
    known: Mapping[str, Parameter],
) -> dict[str, Any]:
    """Write the settings of parameters, without those whose default will do for every tensor."""
    settings = {n: write_setting(v, positions, known[n].default) for n, v in wanted.items()}
    return {name: setting for name, setting in settings.items() if setting is not None}


def _hoisted(slices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Take the parameters that every slice sets alike out of the slices, to be said once."""
    first = slices[0].get("parameters", {})
    alike = {
        name: value
        for name, value in first.items()
        if not isinstance(value, list)
        and all(entry.get("parameters", {}).get(name) == value for entry in slices)
    }
    for entry in slices:
        own = {n: v for n, v in entry.pop("parameters", {}).items() if n not in alike}
        entry |= _without_empty(parameters=own)
    return alike


def _without_empty(**data: Any) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value != {}}


def _yaml(data: Mapping[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100)
