"""One merge as mergekit writes it: a method, models or slices, and settings for every tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evomerge.mergekit.methods import FORMS, Form, Parameter
from evomerge.mergekit.settings import Value
from evomerge.mergekit.tensors import Found, MergeMode, Run, Tensor, place, runs
from evomerge.mergekit.values import Position, impossible, setting
from evomerge.recipe.recipe import BASE

Place = str | tuple[str, str]
"""A model's folder, hub id or stage; of an adapter, the base's and its own."""

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
class Family:
    """The models that a sheet names, all of one layout.

    Attributes:
        specs: source name → where it is, the base first.
        layers: how many each has.
        prefix: the layers' common name, `model.layers`.
        tied: tied name → the name it shares storage with.
    """

    specs: Mapping[str, Place]
    layers: int
    prefix: str
    tied: Mapping[str, str]

    def spec(self, name: str) -> str:
        """How the file names a source."""
        found = self.specs[name]
        specs = (found,) if isinstance(found, str) else found
        for spec in specs:
            if "+" in spec or ("@" in spec and spec.startswith("/")):
                raise impossible(
                    f"mergekit reads '+' and '@' in the path {spec} as parts of a hub id"
                )
        return "+".join(specs)


@dataclass(frozen=True)
class MergekitDocument:
    """A merge of one way.

    Attributes:
        sources: of each slot, where layers are passed through whole; else None.
    """

    family: Family
    way: MergeMode
    path: Sequence[Run]
    sources: Sequence[str] | None
    tensors: Sequence[Tensor]

    @property
    def form(self) -> Form:
        """What mergekit takes for its method."""
        return FORMS[self.way.method]

    @property
    def sliced(self) -> bool:
        """Whether mergekit must be told of slices."""
        return list(self.path) != [Run(0, self.family.layers)]

    @cached_property
    def inputs(self) -> list[str]:
        """The models, in the recipe's order."""
        if self.way.models is not None:
            return list(self.way.models)
        used = {source for tensor in self.tensors for source, _ in tensor.per_model}
        if self.way.method == "linear" or (self.form.base == "needed" and self.sliced):
            used.add(BASE)
        return [source for source in self.family.specs if source in used]

    @property
    def donor(self) -> str | None:
        """The base_model, whose config and tokenizer mergekit takes; None where there is none."""
        models = self.way.models
        if models is not None and self.form.base != "needed":
            return BASE if BASE in models else None
        if self.way.method == "passthrough" and not self.sliced:
            return None
        return models[0] if models else BASE

    def data(self, dtype: str) -> dict[str, Any]:
        """As YAML data; the arithmetic is in float32, the result is rounded to `dtype`."""
        data: dict[str, Any] = {"merge_method": self.way.method}
        if self.donor is not None:
            data["base_model"] = self.family.spec(self.donor)
        if self.sliced:
            data["slices"] = list(self._slices())
            data |= _without_empty({"parameters": _hoisted(data["slices"])})
        else:
            data["models"] = [
                _without_empty(
                    {
                        "model": self.family.spec(name),
                        "parameters": self._of_model(name, self.tensors),
                    }
                )
                for name in self.inputs
            ]
            data |= _without_empty({"parameters": self._of_all(self.tensors)})
        return data | {"dtype": "float32", "out_dtype": dtype}

    def _slices(self) -> Iterator[dict[str, Any]]:
        slot = 0
        for index, run in enumerate(self.path):
            own = [tensor for tensor in self.tensors if tensor.run == index]
            names = self.inputs if self.sources is None else [self.sources[slot]]
            slot += run.stop - run.start
            sources = [
                {
                    "model": self.family.spec(name),
                    "layer_range": [run.start, run.stop],
                    "parameters": self._of_model(name, own),
                }
                for name in names
            ]
            parameters = self._of_all(own)
            yield _without_empty(
                {"sources": [*map(_without_empty, sources)], "parameters": parameters}
            )

    def _of_model(self, source: str, tensors: Sequence[Tensor]) -> dict[str, Any]:
        own = dict.fromkeys(p for t in self.tensors for s, p in t.per_model if s == source)
        wanted = {name: [t.per_model.get((source, name)) for t in tensors] for name in own}
        found = _settings(wanted, [tensor.inner for tensor in tensors], self.form.per_model)
        return {} if found == {"scale": 1.0} else found

    def _of_all(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        names = dict.fromkeys(name for tensor in self.tensors for name in tensor.shared)
        wanted = {name: [tensor.shared.get(name) for tensor in tensors] for name in names}
        return _settings(wanted, [tensor.outer for tensor in tensors], self.form.shared)

    def caveats(self) -> Iterator[str]:
        """In what mergekit's result differs although the file says the same."""
        treated = [t.treatment for t in self.tensors if t.treatment is not None]
        copied = {treatment.source for treatment in treated if treatment.way is None}
        if self.form.random:
            yield _MASKS
        elif any(0 < value < 1 for value in self._kept()):
            yield _TRIM
        if self.form.base == "needed" and self.way.models is None and copied - {BASE}:
            yield _COPIES
        donors = self.inputs if self.donor is None else [self.donor]
        if donors != [BASE]:
            yield f"config and tokenizer are taken from {' or '.join(donors)}, not from the base"

    def _kept(self) -> Iterator[Value]:
        """The shares of entries that are kept by their rank, where the recipe asks for them."""
        for tensor in self.tensors:
            yield tensor.shared.get("select_topk", 1.0)
            yield from (value for (_, name), value in tensor.per_model.items() if name == "density")


def make_sheet(found: Found, layers: Sequence[int], family: Family) -> MergekitDocument:
    """The sheet of tensors of one way, or of copies alone.

    Args:
        layers: the models' layer that each slot takes.
    """
    ways = {t.way for _, _, t in found if t is not None and t.way is not None}
    sources = None if ways else _whole(found, len(layers))
    [way] = ways or {MergeMode("linear") if sources is None else MergeMode("passthrough")}
    path = list(runs(layers, sources))
    tensors = place(found, path, family.prefix, family.tied)
    for tensor in tensors:
        _fill(tensor, way)
    sheet = MergekitDocument(family, way, path, sources, tensors)
    if "weight" in FORMS[way.method].per_model and way.models is None:
        for tensor in tensors:  # a model without a weight for a tensor takes no part in it
            for source in sheet.inputs if tensor.treatment is not None else ():
                tensor.per_model.setdefault((source, "weight"), 0.0)
    return sheet


def _whole(found: Found, slots: int) -> list[str] | None:
    """The source of each slot, None where copies cannot be passed through.

    mergekit takes embeddings from the first slice's model, the last norm and the head from the
    last one's.
    """
    sources: list[set[str]] = [set() for _ in range(slots)]
    for slot, spec, treatment in found:
        if treatment is not None:
            end = 0 if spec.group == "embeddings" else -1
            sources[end if slot is None else slot].add(treatment.source)
    if any(len(own) > 1 for own in sources):
        return None
    return [next(iter(own), BASE) for own in sources]


def _fill(tensor: Tensor, way: MergeMode) -> None:
    """Put what mergekit must be told of one tensor into it."""
    treatment = tensor.treatment
    if treatment is None:
        return
    if treatment.way is not None:
        tensor.per_model = {
            (expert, name): value
            for expert, values in treatment.experts.items()
            for name, value in values.items()
        }
        tensor.shared = dict(treatment.parameters)
    elif way.method == "linear":
        tensor.per_model[treatment.source, "weight"] = treatment.scale
        tensor.shared["normalize"] = False
    elif way.method == "passthrough":
        tensor.per_model[treatment.source, "scale"] = treatment.scale
    elif way.models is not None:
        tensor.shared["t"] = float(way.models.index(treatment.source))
    elif treatment.source != BASE:
        tensor.per_model[treatment.source, "weight"] = 1.0
        tensor.shared["lambda"] = 1.0
        if "density" not in FORMS[way.method].idle:
            tensor.per_model[treatment.source, "density"] = 1.0


def _settings(
    wanted: Mapping[str, Sequence[Value | None]],
    spots: Sequence[Position],
    known: Mapping[str, Parameter],
) -> dict[str, Any]:
    """The settings of parameters, left out where no tensor minds what mergekit takes by default."""
    found = {}
    for name, values in wanted.items():
        if any(value is not None for value in values):
            found[name] = setting(values, spots)
        elif known[name].default is None:
            found[name] = 1.0
    return found


def _hoisted(slices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Take what every slice says alike out of them, to be said once."""
    first = slices[0].get("parameters", {})
    alike = {
        name: value
        for name, value in first.items()
        if not isinstance(value, list)
        and all(entry.get("parameters", {}).get(name) == value for entry in slices)
    }
    for entry in slices:
        own = {n: v for n, v in entry.pop("parameters", {}).items() if n not in alike}
        entry |= _without_empty({"parameters": own})
    return alike


def _without_empty(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value != {}}
