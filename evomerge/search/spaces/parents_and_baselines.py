"""Recipes along the models' own path: merges of given values, parents, and what needs no search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any

import numpy as np

from evomerge.common.errors import InputError
from evomerge.config import TokenizerConfig
from evomerge.methods import Method, find_method
from evomerge.methods.core.calibration_in_recipes import with_calibration
from evomerge.recipe import BASE, Merge, Piece, Recipe, Slot
from evomerge.search.spaces.bounds import Searched
from evomerge.search.spaces.genes import Value
from evomerge.search.spaces.granularity import Group

Owned = Mapping[str | None, Mapping[str, Any]]
"""Parameter → value for each expert, and for None those that experts share."""

MOST_OF_GRID = 256
"""Merges of a grid: it is scored whole, before the search."""


class LayerOrderRecipes:
    """Makes recipes of the models' own depth and order."""

    def __init__(
        self,
        sources: Mapping[str, str],
        groups: Sequence[Group],
        layers: int,
        seed: int,
        tokenizer: TokenizerConfig | None = None,
        calibration: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`sources`: name → content digest, the base first; `groups`: all tensors, as they are
        tuned; `layers`: the models' depth; `seed`: keys random masks; `tokenizer`: how the sources'
        tokens were matched; `calibration`: source → digest of its calibration file.
        """
        self._calibration = calibration
        self._sources, self._tokenizer = dict(sources), tokenizer
        self._experts = [name for name in sources if name != BASE]
        self._groups = groups
        self._layers = layers
        self._seed = seed

    def recipe(self, source: str, merges: Sequence[Merge]) -> Recipe:
        """`merges`, and for what they leave out, `source`'s layers."""
        path = tuple(Slot(source=source, layer=layer) for layer in range(self._layers))
        # without random masks a seed would only make equal merges look different
        drawn = any(find_method(merge.method, "space").needs_position for merge in merges)
        seed = self._seed if drawn else 0
        recipe = Recipe(
            sources=self._sources,
            path=path,
            merges=tuple(merges),
            seed=seed,
            tokenizer=self._tokenizer,
        )
        return with_calibration(recipe, self._calibration)

    def merge(
        self,
        method: Method,
        target: tuple[int | None, str],
        values: Owned,
        fixed: Mapping[str, Value],
        experts: Sequence[str],
        pieces: Sequence[Owned] = (),
    ) -> Merge:
        """One merge of the target's tensors: `values` before `fixed` before the method's defaults;
        what the method does not have is passed over. `pieces` are the values of each of the pieces.
        """
        complete: dict[str | None, dict[str, Any]] = {}
        for owner in (None, *experts):
            given = {**fixed, **values.get(owner, {})}
            complete[owner] = {
                p.name: given.get(p.name, p.default)
                for p in method.parameters.values()
                if p.per_expert == (owner is not None)
            }
        return Merge(
            slot=target[0],
            group=target[1],
            method=method.name,
            experts={name: complete[name] for name in experts},
            parameters=complete[None],
            pieces=tuple(
                Piece(
                    experts={name: dict(own[name]) for name in experts if name in own},
                    parameters=dict(own.get(None, {})),
                )
                for own in pieces
            ),
        )

    def parents(self) -> dict[str, Recipe]:
        """The base and each expert: every layer and group copied from one source."""
        copy = find_method("passthrough", "space")
        targets = [target for group in self._groups for target in group.targets]
        recipes = {BASE: self.recipe(BASE, [])}
        for name in self._experts:
            merges = [
                Merge(slot=slot, group=group, method=copy.name, experts={name: {}})
                for slot, group in targets
                if slot is None
            ]
            recipes[name] = self.recipe(name, merges)
        return recipes

    def baselines(
        self, methods: Sequence[Method], fixed: Mapping[str, Mapping[str, Value]]
    ) -> dict[str, Recipe]:
        """Each method's uniform and default merge, and two that anybody tries.

        "uniform" gives every expert weight 1/N, "default" the method's own defaults; the values of
        `fixed` (method → parameter → value) come before defaults. Whatever the methods, the
        experts' average and TIES with its defaults stand beside them. Identical recipes appear
        once.
        """
        share = {"weight": 1 / len(self._experts)}
        found = {}
        for method in methods:
            own = fixed[method.name]
            found[f"{method.name} default"] = self._everywhere(method, {}, own)
            if "weight" in method.parameters:
                found[f"{method.name} uniform"] = self._everywhere(method, share, own)
        found.setdefault("ties default", self._everywhere(find_method("ties", "space"), {}, {}))
        found["average"] = self._everywhere(find_method("linear", "space"), share, {})
        unique: dict[str, str] = {}
        for name, recipe in found.items():
            unique.setdefault(recipe.digest, name)
        return {name: found[name] for name in unique.values()}

    def grid(
        self,
        methods: Sequence[Method],
        fixed: Mapping[str, Mapping[str, Value]],
        searched: Sequence[Searched],
        points: int,
    ) -> dict[str, Recipe]:
        """Each method at `points` values of every parameter it searches, the same for all experts
        and tensors: from the lower bound to the upper, by logarithms where the genes are.

        Raises:
            InputError: more than `MOST_OF_GRID` merges.
        """
        axes = {method.name: _axes(method, searched, points) for method in methods}
        count = sum(points ** len(axis) for axis in axes.values() if axis)
        if count > MOST_OF_GRID:
            raise InputError(
                f"space.grid: {points} values of every searched parameter make {count} merges, "
                f"more than {MOST_OF_GRID}; write a smaller number"
            )
        found = {}
        for method in methods:
            axis = axes[method.name]
            for values in product(*axis.values()) if axis else ():
                point = dict(zip(axis, values, strict=True))
                shown = [f"{key} {value:.3g}" for key, value in point.items()]
                fixed_there = {**fixed[method.name], **point}
                name = " ".join([method.name, *shown])
                found[name] = self._everywhere(method, {}, fixed_there)
        return found

    def _everywhere(
        self, method: Method, per_expert: Mapping[str, float], fixed: Mapping[str, Value]
    ) -> Recipe:
        """One method with equal parameters on every tensor."""
        values: Owned = dict.fromkeys(self._experts, per_expert)
        merges = [
            self.merge(method, target, values, fixed, self._experts)
            for group in self._groups
            for target in group.targets
        ]
        return self.recipe(BASE, merges)


def _axes(method: Method, searched: Sequence[Searched], points: int) -> dict[str, list[float]]:
    """The method's searched parameters, and their values on the grid."""
    found = {}
    for one in searched:
        if method.name in one.methods:
            space = np.geomspace if one.bounds.log else np.linspace
            values = space(one.bounds.low, one.bounds.high, points)
            found[one.parameter.name] = [float(value) for value in values]
    return found
