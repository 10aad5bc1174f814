"""A recipe as the YAML that mergekit turns into the same tensors, for recipes it can express.

mergekit has one method a file; within it every parameter may differ from tensor to tensor. Layers
that follow each other are one slice; a path that takes every layer in order needs none. Copied
layers are passed through, where each slice, and the embeddings with the first and the head with the
last, come from one model; else they are a linear merge in which one model has weight 1. A recipe of
several methods becomes a file of several merges for mergekit-multi: one for each method, and a last
that takes every tensor from its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from evomerge.mergekit.methods import FORMS
from evomerge.mergekit.sheet import Family, Place, make_sheet
from evomerge.mergekit.tensors import Found, MergeMode, TensorSettings, treatments
from evomerge.mergekit.values import impossible
from evomerge.recipe.recipe import BASE, Recipe

if TYPE_CHECKING:
    from evomerge.models.layout import Layout

_STAGES = "the file has several merges, which mergekit-multi runs one after the other"


@dataclass(frozen=True)
class MergekitFile:
    """A file for mergekit, and in what its result may differ from evomerge's.

    Attributes:
        stages: whether it holds several merges.
        adapters: whether it names models with adapters on them.
    """

    text: str
    caveats: tuple[str, ...]
    stages: bool = False
    adapters: bool = False

    @property
    def command(self) -> str:
        """How mergekit makes `../again` of it."""
        cache = " --lora-merge-cache ../again-adapters" * self.adapters
        if self.stages:
            stages = "-I ../again-stages --out-path ../again"
            return f"mergekit-multi mergekit.yaml {stages}{cache}"
        return f"mergekit-yaml mergekit.yaml ../again{cache}"


def to_mergekit(
    recipe: Recipe, layout: Layout, models: Mapping[str, Place], dtype: str
) -> MergekitFile:
    """Write a recipe as a mergekit 0.1.5 file.

    Args:
        layout: the base model's.
        models: source name → where it is, as the file shall name it.
        dtype: what the result is rounded to, `bfloat16`; the arithmetic is in float32.

    Raises:
        InputError: mergekit cannot express the recipe; says why.
    """
    _check_scales(recipe)
    found = treatments(recipe, layout)
    layers = [slot.layer for slot in recipe.path]
    specs = {name: models[name] for name in recipe.sources}
    family = Family(specs, layout.layers, layout.prefix, layout.tied)
    ways = list(dict.fromkeys(t.way for _, _, t in found if t.way is not None))
    copies = [t for _, _, t in found if t.way is None]
    hosts = [way for way in ways if all(_bears(way, copy) for copy in copies)]
    if len(ways) < 2 and hosts == ways:
        sheet = make_sheet(found, layers, family)
        return MergekitFile(_yaml(sheet.data(dtype)), tuple(sheet.caveats()))
    return _in_stages(found, layers, family, hosts[0] if hosts else None, dtype)


def _in_stages(
    found: Sequence[tuple[int | None, Any, TensorSettings]],
    layers: Sequence[int],
    family: Family,
    host: MergeMode | None,
    dtype: str,
) -> MergekitFile:
    """One merge for each way, with the copies in `host`'s or their own, and one that chooses."""
    stage_of = [treatment.way or host for _, _, treatment in found]
    stages = {way: f"evomerge-stage-{i}" for i, way in enumerate(dict.fromkeys(stage_of), 1)}
    texts, caveats = [], {_STAGES: None}
    for way, name in stages.items():
        own: Found = [
            (slot, spec, treatment if stage == way else None)
            for (slot, spec, treatment), stage in zip(found, stage_of, strict=True)
        ]
        sheet = make_sheet(own, layers, family)
        texts.append(_yaml({"name": name, **sheet.data("float32")}))
        caveats |= dict.fromkeys(sheet.caveats())
    first = next(iter(stages.values()))
    chosen: Found = [
        (slot, spec, TensorSettings(None, source=BASE if stages[stage] == first else stages[stage]))
        for (slot, spec, _), stage in zip(found, stage_of, strict=True)
    ]
    names = {BASE if name == first else name: name for name in stages.values()}
    results = Family(names, len(layers), family.prefix, family.tied)
    texts.append(_yaml(make_sheet(chosen, range(len(layers)), results).data(dtype)))
    return MergekitFile("---\n".join(texts), tuple(caveats), stages=True)


def _bears(way: MergeMode, copy: TensorSettings) -> bool:
    """Whether a merge of this way can leave a tensor as one model has it, times a number."""
    if way.method == "linear":
        return True
    if copy.scale != 1:
        return False
    if way.method == "slerp":
        return way.models is not None and copy.source in way.models
    return way.models is None and "lambda" in FORMS[way.method].shared


def _check_scales(recipe: Recipe) -> None:
    for index, slot in enumerate(recipe.path):
        if slot.scale != 1:
            raise impossible(
                f"path[{index}] multiplies its input by {slot.scale:g}, all that earlier layers "
                "gave, and mergekit's scale multiplies weights, whose sum with that it is not; "
                "recipe.json says it (--format recipe)"
            )


def _yaml(data: Mapping[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100)
