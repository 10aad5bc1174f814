"""`PathSpace`: paths through layers, alone or over a searched merge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from evomerge.config import TokenizerConfig
from evomerge.methods import find_method
from evomerge.methods.core.calibration_in_recipes import with_calibration
from evomerge.models.layout import Layout
from evomerge.recipe import BASE, Merge, MergeCoefficient, Recipe, Slot
from evomerge.search.frank_wolfe import Vertices
from evomerge.search.spaces.genes import Gene, Genome
from evomerge.search.spaces.paths import MERGED, Layer, LayerPaths
from evomerge.search.spaces.space import Derivatives, Space

COMMON_BASELINES = ("ties default", "average")
"""Baselines that are scored beside every campaign."""


class PathSpace(Space):
    """Paths through layers; with weight genes before the path's, weights × path.

    The weight genes say how every layer is merged, and the path then takes layers of that merge,
    under the name "merged", beside those of the other models: wherever its layer l stands, the slot
    has the merges that the weight genes give layer l.
    """

    def __init__(
        self,
        paths: LayerPaths,
        label: str,
        weights: Space | None,
        references: Space,
        layout: Layout,
        sources: Mapping[str, str],
        tokenizer: TokenizerConfig | None = None,
        calibration: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Join weights and paths.

        Args:
            label: the path's kind.
            weights: the space of the merge called "merged", if one is searched.
            references: the space that gives parents and baselines.
            sources: name → content digest, the base first.
            tokenizer: how the sources' tokens were matched; every recipe says so.
            calibration: source → digest of its calibration file; recipes say those that they need.
        """
        self._calibration = calibration
        self._paths = paths
        self._weights = weights
        self._references = references
        self._groups = layout.outside_groups
        self._sources, self._tokenizer = dict(sources), tokenizer
        self._split = weights.dimension if weights else 0
        first = (weights.initial,) if weights else ()
        genes: list[Gene] = [*(weights.genes if weights else ()), *paths.genes]
        super().__init__(genes, np.concatenate([*first, paths.initial]), (), self._seeds())
        self.label = f"{weights.label} × {label}" if weights else label
        if paths.scaled:
            self.notes = (
                "space.path.scales: a recipe whose path scales a layer other than its first cannot "
                "be exported as a checkpoint",
            )

    def _seeds(self) -> dict[str, Genome]:
        """Write the sources as genomes: by the path's genes, or as merges along their own path."""
        if self._weights is None:
            return {n: g for n, g in self._paths.seeds.items() if n == self._paths.outside}
        if self._paths.outside != MERGED or MERGED not in self._paths.seeds:
            return {}
        own_path = self._paths.seeds[MERGED]
        return {n: self._joined(g, own_path) for n, g in self._weights.seeds.items()}

    def _joined(self, weights: Genome, path: Genome) -> Genome:
        return np.concatenate([weights, path])

    @property
    @override
    def cuts(self) -> Sequence[int]:
        before = self._weights.cuts if self._weights else ()
        return [*before, *(self._split + cut for cut in self._paths.cuts)]

    @override
    def recombine(self, a: Genome, b: Genome, split: int, weight: float) -> Genome:
        at = self._split
        of_path = self._paths.recombine(a[at:], b[at:], max(split - at, 0), weight)
        if self._weights is None:
            return of_path
        return self._joined(
            self._weights.recombine(a[:at], b[:at], min(split, at), weight), of_path
        )

    @override
    def keep_in(self, folder: Path) -> None:
        if self._weights is not None:
            self._weights.keep_in(folder)

    @override
    def statistics(self, genome: Genome) -> dict[str, float]:
        of_path = self._paths.statistics(genome[self._split :])
        of_weights = self._weights.statistics(genome[: self._split]) if self._weights else {}
        return {**of_weights, **of_path}

    @override
    def decode(self, genome: Genome) -> Recipe:
        merged = self._weights.decode(genome[: self._split]) if self._weights else None
        path = self._paths.path(genome[self._split :])
        made = [self._slot(index, layer, merged) for index, layer in enumerate(path)]
        recipe = Recipe(
            sources=self._sources,
            path=tuple(slot for slot, _ in made),
            merges=(*self._outside(merged), *(merge for _, merges in made for merge in merges)),
            seed=merged.seed if merged else 0,
            tokenizer=self._tokenizer,
        )
        return with_calibration(recipe, self._calibration)

    @override
    def pull_back(self, genome: Genome, derivatives: Derivatives) -> NDArray[np.float64]:
        # the path's genes move no coefficient; a layer's are those of every slot it stands in
        found = np.zeros(self.dimension)
        if self._weights is None:
            return found
        path = self._paths.path(genome[self._split :])
        of_layers: dict[MergeCoefficient, float] = {}
        for key, value in derivatives.items():
            layer = None if key.slot is None else path[key.slot]
            if (self._paths.outside if layer is None else layer.models[0]) == MERGED:
                inner = key._replace(slot=None if layer is None else layer.layer)
                of_layers[inner] = of_layers.get(inner, 0.0) + value
        found[: self._split] = self._weights.pull_back(genome[: self._split], of_layers)
        return found

    @override
    def vertices(self) -> Vertices | None:
        inner = self._weights.vertices() if self._weights else None
        if inner is None:
            return None
        points = np.tile(self.initial, (len(inner.points), 1))
        points[:, : self._split] = inner.points
        return Vertices(points, inner.blocks)

    @override
    def point_of(self, recipe: Recipe) -> Genome | None:
        """As elsewhere; over a searched merge also where the merge is the recipe, along the models'
        own path.
        """
        found, own_path = super().point_of(recipe), self._paths.seeds.get(MERGED)
        if found is not None or self._weights is None or own_path is None:
            return found
        inner = self._weights.point_of(recipe) if self._paths.outside == MERGED else None
        return None if inner is None else self._joined(inner, own_path)

    @override
    def parents(self) -> dict[str, Recipe]:
        return self._references.parents()

    @override
    def baselines(self) -> dict[str, Recipe]:
        """Merges along the models' own path that need no search; alone, those of any campaign."""
        found = self._references.baselines()
        if self._weights is None:
            found = {name: found[name] for name in COMMON_BASELINES}
        return found

    @override
    def grid(self, points: int) -> dict[str, Recipe]:
        """The weights' grid, along the models' own path; empty where no weights are searched."""
        return self._weights.grid(points) if self._weights else {}

    def _slot(self, index: int, layer: Layer, merged: Recipe | None) -> tuple[Slot, list[Merge]]:
        """Make one slot and its merges."""
        name = layer.models[0]
        if name == MERGED:
            assert merged is not None
            source = merged.path[layer.layer].source
            merges = [
                merge.model_copy(update={"slot": index})
                for merge in merged.merges
                if merge.slot == layer.layer
            ]
        else:
            source = name
            merges = [_average(index, layer.models)] if len(layer.models) > 1 else []
        return Slot(source=source, layer=layer.layer, scale=layer.scale), merges

    def _outside(self, merged: Recipe | None) -> Iterator[Merge]:
        """Merges of embeddings, final norm and head, from the model that gives them."""
        name = self._paths.outside
        if name == MERGED and merged is not None:
            yield from (merge for merge in merged.merges if merge.slot is None)
        elif name != BASE:
            copied = find_method("passthrough", "space").name
            for group in self._groups:
                yield Merge(slot=None, group=group, method=copied, experts={name: {}})


def _average(slot: int, models: Sequence[str]) -> Merge:
    share = 1 / len(models)
    return Merge(
        slot=slot,
        group="layer",
        method=find_method("linear", "space").name,
        experts={name: {"weight": share} for name in models if name != BASE},
        parameters={"base_weight": share if BASE in models else 0.0, "normalize": True},
    )
