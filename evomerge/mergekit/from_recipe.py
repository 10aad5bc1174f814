"""Turn a mergekit recipe into a campaign whose genes lie around the recipe's own values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from evomerge.common.errors import InputError
from evomerge.config import Draft, campaign_name
from evomerge.mergekit.merge import MergekitMerge
from evomerge.mergekit.methods import readable
from evomerge.methods import Parameter, find_method
from evomerge.recipe import BASE, Merge, Recipe

if TYPE_CHECKING:
    from evomerge.models.layout import Layout

SEARCHED = ("weight", "base_weight", "density", "t", "lambda", "select_topk")
"""Parameters that become genes where a method has them and the recipe names them."""
_HALF_WIDTH = {"weight": 0.5, "base_weight": 0.5, "lambda": 0.5}
"""Half the width of a gene's bounds around the recipe's value; 0.25 for shares."""
_BLOCKS = 8
"""Blocks of layers that a gradient over the layers is searched in."""


def from_recipe(merge: MergekitMerge, layout: Layout) -> Draft:
    """Make a campaign, without its `fitness`, that begins at a mergekit recipe.

    Args:
        merge: as `load_mergekit` read it.
        layout: of its models, or of ones whose tensors are called alike.

    Raises:
        InputError: a setting that does not fit the layout, or no expert to search.
    """
    recipe = merge.recipe(layout, dict.fromkeys(merge.models, ""))
    models, others = _models(merge)
    if not models["experts"]:
        raise InputError(f"{merge.where}: it has one model, so there is nothing to search")
    found = _Space(merge, recipe, layout, list(models["experts"]))
    file = PurePath(merge.where).name
    data: dict[str, Any] = {
        "name": campaign_name(PurePath(merge.where).stem) or "recipe",
        "models": models,
        **({} if merge.weights == "checkpoint" else {"dtype": {"weights": merge.weights}}),
        "space": found.section(),
    }
    if found.begins_there:
        data["initial"] = [merge.where]
        found.why["initial"] = "the search begins at the recipe itself"
    elif found.begins_uniform:
        data["initial"] = ["uniform"]
    return Draft(f"From {file}, a mergekit recipe.", data, found.why, (*others, *found.lost))


def _models(merge: MergekitMerge) -> tuple[dict[str, Any], list[str]]:
    """Return the `models` section, and the notes of the reader as what has no counterpart."""
    experts = {name: spec for name, spec in merge.models.items() if name != BASE}
    experts = {name: spec for name, spec in experts.items() if spec != merge.models[BASE]}
    section: dict[str, Any] = {BASE: merge.models[BASE], "experts": experts}
    tokenizer: dict[str, Any] = {}
    if merge.tokenizer is not None:
        tokenizer = merge.tokenizer.model_dump(mode="json", exclude_defaults=True)
        tokenizer.setdefault("source", merge.tokenizer.source)
    if merge.chat_template is not None:
        tokenizer = {"source": BASE, **tokenizer, "chat_template": merge.chat_template}
    if tokenizer:
        section["tokenizer"] = tokenizer
    return section, list(merge.notes)


@dataclass
class _Space:
    """The making of the `space` section.

    Attributes:
        experts: the campaign's.
        lost: what has no counterpart, as it is found.
        why: the comments, as they are found.
        begins_there: whether the recipe is a point of the space.
        begins_uniform: whether the space has a uniform merge to begin at instead.
    """

    merge: MergekitMerge
    recipe: Recipe
    layout: Layout
    experts: list[str]
    lost: list[str] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)
    begins_there: bool = True
    begins_uniform: bool = True

    def section(self) -> dict[str, Any]:
        own = [slot.layer for slot in self.recipe.path] != list(range(self.layout.layers))
        if own or not self.recipe.merges:
            return {"path": self._slices()}
        methods = {merge.method for merge in self.recipe.merges}
        if len(methods) > 1:
            self.lost.append(
                f"several methods ({', '.join(sorted(methods))}): task_arithmetic stands for them"
            )
        named = methods.pop() if len(methods) == 1 else ""
        genes = self._genes(named) if named else {}
        if not any(isinstance(value, list) for value in genes.values()):
            return {"weights": self._instead(named)}
        weights = {"method": named, **self._granularity(), "genes": genes}
        return {"weights": weights}

    def _slices(self) -> dict[str, Any]:
        """Describe a path of layers: as many ranges as the recipe has, of the same models."""
        self.begins_there = self.begins_uniform = False
        spans = self.merge.spans
        self.lost.append(
            "slices: the search does not begin at the given ranges; it has as many, of any models"
        )
        if any(merge.method != "passthrough" for merge in self.recipe.merges):
            self.lost.append(f"slices: {self.merge.method} within them: layers are copied here")
        depth = len(self.recipe.path)
        self.why["space.path"] = f"ranges of layers; the recipe has {len(spans)}, {depth} layers"
        found: dict[str, Any] = {"kind": "slices", "count": max(2, len(spans))}
        listed = {name for span in spans for name in span.models}
        return {
            **found,
            "sources": [name for name in (BASE, *self.experts) if name in listed],
            "max_depth": max(2, depth),
        }

    def _instead(self, method: str) -> dict[str, Any]:
        """Describe a search of task arithmetic where the recipe's method has no coefficients."""
        self.begins_there = False
        if method:
            self.lost.append(
                f"merge_method: {method} has no coefficients to search; task_arithmetic's stand in "
                "their place"
            )
        self.why["space.weights.method"] = "in the place of the recipe's"
        return {
            "method": "task_arithmetic",
            "granularity": "block",
            "block": self._block(),
            "genes": {"weight": [0, 1]},
        }

    def _genes(self, name: str) -> dict[str, Any]:
        """Give each parameter that the recipe names bounds around its values, each other its value.

        Where experts have values of their own, so do their bounds.
        """
        method = find_method(name, self.merge.where)
        named = self._named()
        genes: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for parameter in method.parameters.values():
            by_expert = self._values(parameter)
            values = [value for found in by_expert.values() for value in found]
            if not values:
                continue
            key = f"space.weights.genes.{parameter.name}"
            if parameter.name in SEARCHED and parameter.name in named:
                bounds = {who: _around(parameter, found) for who, found in by_expert.items()}
                lows, highs = zip(*bounds.values(), strict=True)
                genes[parameter.name] = [min(lows), max(highs)]
                self.why[key] = f"around {_shown(values)} of the recipe"
                if len(set(map(tuple, bounds.values()))) > 1:
                    own |= {f"{parameter.name}.*.{who}": at for who, at in bounds.items() if who}
            elif len(set(values)) == 1:
                if values[0] != parameter.default:
                    genes[parameter.name] = values[0]
            else:
                self.begins_there = False
                genes[parameter.name] = values[0]
                self.lost.append(
                    f"parameters: {parameter.name} differs from tensor to tensor; {values[0]} "
                    "everywhere here"
                )
        return {**genes, **own}

    def _named(self) -> set[str]:
        """Collect the parameters that the file gives values for, by evomerge's names."""
        pairing = readable()[self.merge.method]
        said = [self.merge.settings]
        for span in self.merge.spans:
            said += [span.settings, *span.models.values()]
        given = {name for settings in said for name in settings}
        found = {pairing.ours.get(name, name) for name in given}
        return found | ({"base_weight"} if pairing.weighs_base and self._weighs_base() else set())

    def _weighs_base(self) -> bool:
        return any(merge.parameters.get("base_weight") for merge in self.recipe.merges)

    def _values(self, parameter: Parameter) -> dict[str, list[Any]]:
        """Collect a parameter's values, by expert ("" where it is shared), each value once."""
        found: dict[str, dict[Any, None]] = {}
        for merge in self.recipe.merges:
            owned: Iterable[tuple[str, Mapping[str, Any]]] = [("", merge.parameters)]
            if parameter.per_expert:
                owned = [(who, of) for who, of in merge.experts.items() if who in self.experts]
            for who, values in owned:
                found.setdefault(who, {})[values.get(parameter.name, parameter.default)] = None
        return {who: list(values) for who, values in found.items()}

    def _granularity(self) -> dict[str, Any]:
        """Choose the granularity by what the recipe's settings tell apart."""
        key = "space.weights.granularity"
        merges = self.recipe.merges
        if len({_content(merge) for merge in merges}) == 1:
            self.why[key] = "the recipe has the same values in all layers"
            return {"granularity": "model"}
        layers = [merge for merge in merges if merge.slot is not None]
        if all(merge.group == "layer" for merge in layers):
            self.why[key] = (
                "the recipe's values change over the layers; the start is their mean in each "
                "block, granularity: layer begins at them exactly, with more genes"
            )
            return {"granularity": "block", "block": self._block()}
        self.why[key] = (
            "the recipe's filters tell modules apart; granularity: block has far fewer genes"
        )
        return {"granularity": "module"}

    def _block(self) -> int:
        return max(1, self.layout.layers // _BLOCKS)


def _around(parameter: Parameter, values: Iterable[float]) -> list[float]:
    """Return bounds around values, within the parameter's range and on their side of zero."""
    known = list(values)
    half = _HALF_WIDTH.get(parameter.name, 0.25)
    low, high = min(known) - half, max(known) + half
    if min(known) >= 0:
        low = max(low, 0.0)
    if parameter.low is not None:
        low = max(low, parameter.low)
    if parameter.high is not None:
        high = min(high, parameter.high)
    if parameter.name in ("density", "select_topk"):
        low = max(low, 0.05)
    return [round(low, 4), round(high, 4)]


def _shown(values: Iterable[float]) -> str:
    known = sorted(set(values))
    if len(known) <= 3:
        return ", ".join(f"{value:g}" for value in known)
    return f"{known[0]:g} to {known[-1]:g}"


def _content(merge: Merge) -> str:
    """Return all of a merge but its place, to compare."""
    return repr((merge.method, sorted(merge.experts.items()), sorted(merge.parameters.items())))
