"""A space over another: recipes of the inner one, changed as genes of the outer's own say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evomerge.recipe import Recipe
from evomerge.search.spaces.genes import Gene, Genome
from evomerge.search.spaces.space import Space


class Wrapped(Space):
    """Genes of its own among those of another space, whose genomes are a part of its own.

    Parents, baselines and the grid are the inner space's, unchanged.
    """

    def __init__(
        self,
        inner: Space,
        own: Sequence[tuple[int, Gene]],
        plain: Mapping[str, float],
    ) -> None:
        """Put the genes in their places.

        Args:
            own: each before the inner gene of that index, those at −1 before all; indices rise.
            plain: own gene → its value where the search begins, that changes nothing.
        """
        self.inner = inner
        self._own_genes = [gene for _, gene in own]
        self._places = np.array([place for place, _ in own], dtype=int)
        self._own = self._places.clip(0) + np.arange(len(own))
        inside = np.arange(inner.dimension)
        self._inside = inside + np.searchsorted(self._places, inside, side="right")
        dimension = len(own) + inner.dimension
        first, genes = np.empty(dimension), dict(zip(self._own, self._own_genes, strict=True))
        first[self._own] = [gene.unit(plain[gene.name]) for gene in self._own_genes]
        first[self._inside] = inner.initial
        genes |= dict(zip(self._inside, inner.genes, strict=True))
        super().__init__([genes[index] for index in range(dimension)], first)

    @property
    def cuts(self) -> Sequence[int]:
        """The inner space's; what is about the whole model stands before them."""
        inner = np.asarray(self.inner.cuts)
        before = inner + np.searchsorted(self._places, inner, side="left")
        return sorted({0, *before.tolist()})

    def keep_in(self, folder: Path) -> None:
        """Told to the inner space too."""
        self.inner.keep_in(folder)

    def parents(self) -> dict[str, Recipe]:
        """The base and each expert as recipes."""
        return self.inner.parents()

    def baselines(self) -> dict[str, Recipe]:
        """The inner space's, unchanged."""
        return self.inner.baselines()

    def grid(self, points: int) -> dict[str, Recipe]:
        """The inner space's, unchanged."""
        return self.inner.grid(points)

    def own_values(self, genome: Genome) -> dict[str, float]:
        """Own gene → its value."""
        values = zip(self._own_genes, genome[self._own], strict=True)
        return {gene.name: float(gene.value(unit)) for gene, unit in values}

    def inside(self, genome: Genome) -> Genome:
        """The inner space's genome."""
        return genome[self._inside]
