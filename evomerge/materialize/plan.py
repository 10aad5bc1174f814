"""From a recipe to one step per tensor, checked against the models before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import InputError
from evomerge.methods.registry import Method, find_method
from evomerge.models.layout import Layout, TensorSpec
from evomerge.models.source import Source
from evomerge.recipe import BASE, Merge, Recipe
from evomerge.recipe.recipe import merge_name


@dataclass(frozen=True)
class MergeRule:
    """A recipe's merge with its method looked up and every argument checked and filled in."""

    method: Method
    experts: tuple[str, ...]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class TensorStep:
    """How one tensor of the merged model is made: by `rule`, or copied from `source`."""

    tensor: TensorSpec
    source: str
    rule: MergeRule | None


def plan(recipe: Recipe, layout: Layout, sources: Mapping[str, Source]) -> list[TensorStep]:
    """One step per stored tensor of the merged model, in the layout's order.

    Raises:
        InputError: the recipe names a source, layer, group, method or parameter that is not there,
            or asks for a path this version cannot build.
    """
    for name in recipe.sources:
        if name not in sources:
            raise InputError(
                f"recipe: names source {name!r}, but the models are {', '.join(sources)}"
            )
    _check_path(recipe, layout)
    rules = {(merge.slot, merge.group): _rule(merge, layout, recipe) for merge in recipe.merges}
    steps = []
    for tensor in layout.tensors:
        if tensor.layer is None:
            steps.append(TensorStep(tensor, BASE, rules.get((None, tensor.group))))
        else:
            rule = rules.get((tensor.layer, tensor.group)) or rules.get((tensor.layer, "layer"))
            steps.append(TensorStep(tensor, recipe.path[tensor.layer].source, rule))
    return steps


def check_contents(recipe: Recipe, sources: Mapping[str, Source]) -> None:
    """Refuse models whose weights are not those the recipe was made from; reads them all once.

    Raises:
        InputError: a source's digest differs; names it and its folder.
    """
    for name, digest in recipe.sources.items():
        if name in sources and sources[name].digest != digest:
            raise InputError(
                f"recipe: was made from another {name!r}: its weights have digest {digest}, "
                f"those in {sources[name].folder} have {sources[name].digest}"
            )


def _check_path(recipe: Recipe, layout: Layout) -> None:
    for index, slot in enumerate(recipe.path):
        if slot.layer >= layout.layers:
            raise InputError(
                f"recipe: path[{index}] names layer {slot.layer} of {slot.source!r}, "
                f"but the models have layers 0 to {layout.layers - 1}"
            )
    straight = [slot.layer for slot in recipe.path] == list(range(layout.layers))
    if not straight or any(slot.scale != 1 for slot in recipe.path):
        raise InputError(
            "recipe: its path reorders, repeats, drops or scales layers; this version builds only "
            f"the path of layers 0 to {layout.layers - 1} in order, each from any source"
        )


def _rule(merge: Merge, layout: Layout, recipe: Recipe) -> MergeRule:
    where = f"recipe: {merge_name(merge)}"
    groups = layout.outside_groups if merge.slot is None else ("layer", *layout.modules)
    if merge.group not in groups:
        raise InputError(f"{where}: the model has no such group; it has {', '.join(groups)}")
    method = find_method(merge.method, where)
    ordered = [name for name in recipe.sources if name in merge.experts]
    experts = {name: merge.experts[name] for name in ordered}
    return MergeRule(method, tuple(ordered), method.arguments(merge.parameters, experts, where))
