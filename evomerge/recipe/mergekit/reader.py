"""A mergekit file as a recipe, for what both tools can do; anything else is refused by name.

Three differences remain, by choice. mergekit computes in the dtype of `dtype:`, or of the weights;
evomerge computes in float32 and rounds to `out_dtype`, else to `dtype`, else to the base's own.
Filters are matched against transformers' names of tensors. And the result has the base's tokenizer,
chat template and vocabulary rows.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import InputError
from evomerge.recipe.mergekit.document import Document, ModelEntry, parse_document
from evomerge.recipe.mergekit.settings import (
    METHODS,
    RANDOM,
    Method,
    Parameter,
    Setting,
    Value,
    depth,
    evaluate,
    parse_setting,
)
from evomerge.recipe.recipe import BASE, Merge, Recipe, Slot
from evomerge.registry import nearest

if TYPE_CHECKING:
    from evomerge.models.layout import Layout, TensorSpec

_DTYPES = ("float32", "float16", "bfloat16")
Settings = Mapping[str, Setting]
_Made = tuple[dict[str, dict[str, float]], dict[str, bool | float | str]]
"""Values per expert, and shared ones: what a `Merge` holds."""


@dataclass(frozen=True)
class _Stretch:
    """Consecutive layers, each merged from the same layer of each of its models.

    Attributes:
        start: its first layer.
        layers: how many; None for all of the model's.
        models: name → the settings of this model alone.
        settings: those of the whole stretch.
    """

    start: int
    layers: int | None
    models: Mapping[str, Settings]
    settings: Settings


@dataclass(frozen=True)
class MergekitMerge:
    """What a mergekit file says, before the models are known.

    Attributes:
        models: source name → folder or hub id as the file has it, the base first. Experts are
            called by the last part of their path.
        weights: the dtype of the result: "checkpoint" for the base's.
        notes: where evomerge's result may differ from mergekit's, one line each.
    """

    where: str
    models: Mapping[str, str]
    weights: str
    notes: tuple[str, ...]
    method: str
    settings: Settings
    stretches: tuple[_Stretch, ...]

    def recipe(self, layout: Layout, digests: Mapping[str, str], seed: int = 0) -> Recipe:
        """The recipe over models of this layout.

        Args:
            digests: source name → content digest, for the names of `models`.
            seed: keys the random masks.

        Raises:
            InputError: the slices do not cover the layers in order, a filter separates tensors
                of one module, or a needed parameter is missing for some tensor.
        """
        last = self.stretches[-1]
        covered = layout.layers if last.layers is None else last.start + last.layers
        if covered != layout.layers:
            raise InputError(
                f"{self.where}: slices: they make {covered} layers, but the models have "
                f"{layout.layers}; this version builds only models of the base's depth"
            )
        return Recipe(
            sources={name: digests[name] for name in self.models},
            path=tuple(Slot(source=BASE, layer=layer) for layer in range(layout.layers)),
            merges=tuple(self._merges(layout)),
            seed=seed,
        )

    def _merges(self, layout: Layout) -> Iterator[Merge]:
        """One merge for each group: a whole layer where its modules agree, else a module where its
        tensors do, else a tensor.
        """
        groups: dict[tuple[int | None, str], _Made] = {}
        split: set[tuple[int, str]] = set()
        of_tensor = {spec.name: self._made(spec, layout.layers) for spec in layout.tensors}
        for spec in layout.tensors:
            made = of_tensor[spec.name]
            if groups.setdefault((spec.layer, spec.group), made) == made:
                continue
            if spec.layer is None:
                raise InputError(
                    f"{self.where}: a filter gives {spec.name} other values than the rest of "
                    f"{spec.group}; evomerge merges these as a whole"
                )
            split.add((spec.layer, spec.group))
        for spec in layout.tensors:
            if spec.layer is not None and (spec.layer, spec.group) in split:
                groups.pop((spec.layer, spec.group), None)
                groups[spec.layer, spec.suffix] = of_tensor[spec.name]
        for layer in range(layout.layers):
            if any(slot == layer for slot, _ in split):
                continue
            own = [groups[layer, module] for module in layout.modules if (layer, module) in groups]
            if all(made == own[0] for made in own):
                for module in layout.modules:
                    groups.pop((layer, module), None)
                groups[layer, "layer"] = own[0]
        for (slot, group), (experts, parameters) in groups.items():
            yield Merge(
                slot=slot, group=group, method=self.method, experts=experts, parameters=parameters
            )

    def _made(self, spec: TensorSpec, layers: int) -> _Made:
        """The values of one tensor, in evomerge's terms."""
        stretch, t = self._place(spec, layers)
        method = METHODS[self.method]
        parameters: dict[str, bool | float | str] = {
            name: self._value(parameter, name, spec.name, t, [stretch.settings])
            for name, parameter in method.shared.items()
        }
        experts: dict[str, dict[str, float]] = {}
        for name, own in stretch.models.items():
            if name == BASE and method.base == "needed":
                continue
            experts[name] = {
                p: self._value(parameter, p, spec.name, t, [own, stretch.settings])
                for p, parameter in method.per_model.items()
            }
        if self.method == "linear":
            parameters["base_weight"] = experts.pop(BASE, {"weight": 0.0})["weight"]
        elif self.method == "passthrough":
            [(name, values)] = experts.items()
            return ({} if name == BASE else {name: {}}), {"scale": values["scale"]}
        return experts, parameters

    def _place(self, spec: TensorSpec, layers: int) -> tuple[_Stretch, float]:
        """The stretch that makes a tensor, and its depth within it.

        Embeddings belong to the first stretch, the last norm and the head to the last, all at 0.
        """
        if spec.layer is None:
            return self.stretches[0 if spec.group == "embeddings" else -1], 0.0
        stretch = next(s for s in reversed(self.stretches) if s.start <= spec.layer)
        return stretch, depth(spec.layer - stretch.start, stretch.layers or layers)

    def _value(
        self, parameter: Parameter, name: str, tensor: str, t: float, scopes: Sequence[Settings]
    ) -> Value:
        """A parameter from the innermost scope that has a value for the tensor."""
        for scope in (*scopes, self.settings):
            value = evaluate(scope[name], tensor, t) if name in scope else None
            if value is not None:
                return value
        if parameter.default is None:
            raise InputError(f"{self.where}: parameters: {name!r} is missing for {tensor}")
        return parameter.default


def load_mergekit(path: Path) -> MergekitMerge:
    """Read a mergekit file.

    Raises:
        InputError: it cannot be read, is not YAML, or says what evomerge does not do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    return from_mergekit(text, str(path))


def from_mergekit(text: str, where: str = "mergekit file") -> MergekitMerge:
    """Read a mergekit file's text; `where` names it in messages.

    Raises:
        InputError: it is not YAML, or says what evomerge does not do; names the key.
    """
    document = parse_document(text, where)
    if document.merge_method not in METHODS:
        raise InputError(
            f"{where}: merge_method: {document.merge_method!r} of mergekit is not read; "
            f"{', '.join(METHODS)} are"
        )
    return _Reading(document, where).merge()


@dataclass(frozen=True)
class _Reading:
    """One file on its way to a `MergekitMerge`."""

    file: Document
    where: str

    def merge(self) -> MergekitMerge:
        file = self.file
        self._check_tokenizer()
        names = self._names()
        return MergekitMerge(
            where=self.where,
            models={name: spec for spec, name in names.items()},
            weights=self._dtype(),
            notes=tuple(self._notes()),
            method=file.merge_method,
            settings=self._settings(file.parameters, "parameters"),
            stretches=tuple(self._stretches(names)),
        )

    @property
    def _method(self) -> Method:
        return METHODS[self.file.merge_method]

    def _base(self) -> str:
        """The base model: as named, or the first model where the method needs none."""
        file = self.file
        if file.base_model is not None:
            return file.base_model
        if self._method.base == "needed":
            raise InputError(f"{self.where}: base_model: {file.merge_method} needs one")
        return self._listed()[0]

    def _listed(self) -> list[str]:
        file = self.file
        if bool(file.models) == bool(file.slices):
            raise InputError(f"{self.where}: give either 'models' or 'slices'")
        if file.models:
            return [entry.model for entry in file.models]
        return [source.model for entry in file.slices or () for source in entry.sources]

    def _names(self) -> dict[str, str]:
        """Model as the file names it → source name, the base first."""
        specs = dict.fromkeys([self._base(), *self._listed()])
        names: dict[str, str] = {}
        for spec in specs:
            if "+" in spec:
                raise InputError(
                    f"{self.where}: {spec}: LoRA adapters ('+') are not read; merge the adapter "
                    "into its model first"
                )
            names[spec] = _expert_name(spec, {BASE, *names.values()}) if names else BASE
        return names

    def _stretches(self, names: Mapping[str, str]) -> Iterator[_Stretch]:
        if self.file.models:
            entries = {f"models[{i}]": entry for i, entry in enumerate(self.file.models)}
            models = self._inputs(entries, names, "models")
            yield _Stretch(0, None, models, {})
            return
        start, first = 0, None
        slices = self.file.slices or []
        for index, entry in enumerate(slices):
            key = f"slices[{index}]"
            if entry.base_model not in (None, self.file.base_model):
                raise InputError(f"{self.where}: {key}.base_model: a base of its own is not read")
            ranges = {source.layer_range for source in entry.sources}
            stop = max(stop for _, stop in ranges)
            if ranges != {(start, stop)} or stop <= start:
                raise InputError(
                    f"{self.where}: {key}: layer_range must be [{start}, …] here, in every source; "
                    "this version builds only paths that take each layer once, in order"
                )
            sources = {f"{key}.sources[{i}]": s for i, s in enumerate(entry.sources)}
            settings = self._settings(entry.parameters, f"{key}.parameters")
            stretch = _Stretch(start, stop - start, self._inputs(sources, names, key), settings)
            first = first or stretch
            if entry is slices[-1] and len(stretch.models) > len(first.models):
                raise InputError(
                    f"{self.where}: {key}: it has more sources than slices[0], of which mergekit "
                    "leaves the last out of the final norm and the head; give both as many"
                )
            yield stretch
            start = stop

    def _inputs(
        self, entries: Mapping[str, ModelEntry], names: Mapping[str, str], key: str
    ) -> dict[str, Settings]:
        """The models of one stretch with their settings, checked against the method."""
        models: dict[str, Settings] = {}
        for place, entry in entries.items():
            name = names[entry.model]
            if name in models:
                raise InputError(f"{self.where}: {place}: {entry.model} is listed twice")
            models[name] = self._settings(
                entry.parameters, f"{place}.parameters", self._method.per_model
            )
        base_named = self.file.base_model is not None
        if key == "models" and base_named:
            models.setdefault(BASE, {})
        method, name = self._method, self.file.merge_method
        if method.base == "needed" and BASE not in models:
            raise InputError(f"{self.where}: {key}: {name} needs the base_model among its sources")
        if method.inputs is not None and len(models) != method.inputs:
            count = "one model" if method.inputs == 1 else f"{method.inputs} models"
            raise InputError(
                f"{self.where}: {key}: {name} takes {count}, the base_model included, "
                f"not {len(models)}"
            )
        if method.base == "needed" and len(models) < 2:
            raise InputError(f"{self.where}: {key}: {name} needs a model beside the base")
        return models

    def _settings(
        self,
        parameters: Mapping[str, Any] | None,
        key: str,
        known: Mapping[str, Parameter] | None = None,
    ) -> Settings:
        """Parse a section's parameters; `known` are those that count in it, by default all."""
        if known is None:
            known = {**self._method.per_model, **self._method.shared}
        settings: dict[str, Setting] = {}
        for name, raw in (parameters or {}).items():
            place = f"{self.where}: {key}.{name}"
            if name == "int8_mask":
                raise InputError(f"{place}: not read; leave it out, it changes no value")
            if name == "rescale" and raw == (self.file.merge_method in RANDOM):
                continue
            if name not in known:
                raise InputError(
                    f"{place}: {name!r} of {self.file.merge_method} is not read here; "
                    f"{nearest(name, known)}"
                )
            try:
                settings[name] = parse_setting(raw, known[name].type)
            except ValueError as error:
                raise InputError(f"{place}: {error}") from None
        return settings

    def _check_tokenizer(self) -> None:
        file = self.file
        if file.tokenizer not in (None, {"source": "base"}):
            raise InputError(f"{self.where}: tokenizer: only 'source: base' is read")
        if file.tokenizer_source not in (None, "base", file.base_model):
            raise InputError(
                f"{self.where}: tokenizer_source: {file.tokenizer_source} is not read; the result "
                "has the base's tokenizer: leave it out, or say base"
            )
        if file.chat_template not in (None, "auto"):
            raise InputError(
                f"{self.where}: chat_template: not read; the result has the base's: leave it out"
            )

    def _dtype(self) -> str:
        for key in ("out_dtype", "dtype"):
            value = getattr(self.file, key)
            if value is not None:
                name = str(value).removeprefix("torch.")
                if name not in _DTYPES:
                    raise InputError(
                        f"{self.where}: {key}: {value} is not written; use {', '.join(_DTYPES)}"
                    )
                return name
        return "checkpoint"

    def _notes(self) -> Iterator[str]:
        file = self.file
        if file.merge_method in RANDOM:
            yield (
                f"{file.merge_method} drops entries by evomerge's own masks and divides the rest "
                "by the density; mergekit's masks differ with every run, and it rescales to the L1 "
                "norm"
            )
        if file.chat_template == "auto":
            yield "chat_template: auto: the result has the base's chat template"
        if file.base_model is None:
            yield f"no base_model: config and tokenizer are those of {self._base()}, listed first"


def _expert_name(spec: str, taken: Container[str]) -> str:
    """The last part of a model's path, as a source may be called, with a number where needed."""
    last = spec.partition("@")[0].rstrip("/").rpartition("/")[2]
    stem = name = re.sub(r"[^A-Za-z0-9_-]", "_", last).strip("_-") or "expert"
    number = 2
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    return name
