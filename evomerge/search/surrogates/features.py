"""Genomes as points whose distance means something, for models of what has been measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.search.spaces.genes import Domain, Genome

Floats = NDArray[np.float64]


class Features:
    """Maps genomes to points, such that those with one recipe coincide.

    A float gene is its share of the way from `low` to `high`, by the logarithm where the gene is; a
    whole number the middle of its cell. A categorical has a coordinate a choice, scaled so that two
    choices are as far apart as a float's bounds. What does not exist beside the others' values
    stands at the domain's initial entry, as in every other genome where it does not exist.
    """

    def __init__(self, domain: Domain) -> None:
        """`domain`: the genes; those with one level only are left out."""
        self._domain = domain
        kinds = np.array([gene.kind for gene in domain.genes])
        levels = np.array([gene.levels or 0 for gene in domain.genes])
        chosen = (kinds == "categorical") & (levels > 1)
        self._numbers = np.flatnonzero((kinds != "categorical") & (levels != 1))
        self._cells = levels[self._numbers]
        self._choices = [(int(place), int(levels[place])) for place in np.flatnonzero(chosen)]
        self._conditional = [i for i, gene in enumerate(domain.genes) if gene.when]

    def __call__(self, genome: Genome) -> Floats:
        """One genome, shape (dimension,), as a point, shape (coordinates,)."""
        genome = np.clip(genome, 0.0, 1.0)
        if self._conditional:
            exist = self._domain.params(genome)
            for place in self._conditional:
                if self._domain.genes[place].name not in exist:
                    genome[place] = self._domain.initial[place]
        numbers, cells = genome[self._numbers], np.maximum(self._cells, 1)
        middles = (np.minimum(numbers * cells // 1, cells - 1) + 0.5) / cells
        parts = [np.where(self._cells > 0, middles, numbers)]
        for place, count in self._choices:
            level = min(int(genome[place] * count), count - 1)
            parts.append((np.arange(count) == level) / np.sqrt(2.0))
        return np.concatenate(parts)
