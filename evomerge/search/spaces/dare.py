"""DARE over a space of weights: task vectors thinned out at random before they are merged."""

from __future__ import annotations

import numpy as np

from evomerge.config import DareConfig
from evomerge.methods.core.dare_in_recipes import check_droppable, dropped
from evomerge.recipe import Merge, Recipe
from evomerge.search.spaces.genes import Gene, Genome
from evomerge.search.spaces.weights import WeightSpace
from evomerge.search.spaces.wrapped import Wrapped

KEY = "space.weights.dare"
GENE = "dare.density"


class DareSpace(Wrapped):
    """A space of weights whose experts lose entries of their task vectors first.

    The gene `dare.density`, one for the whole model, stands before those of the weights; with
    `per: group` each group's begins with `dare.density.GROUP`. A density that has a value instead
    of bounds has no gene. Source: Yu et al. 2024, arXiv:2311.03099, eq. 1.
    """

    def __init__(self, config: DareConfig, weights: WeightSpace, seed: int) -> None:
        """Put the two together; `seed` keys the masks.

        Raises:
            InputError: a method has no task vectors, or draws at random itself.
        """
        for method in weights.methods:
            check_droppable(method, KEY)
        self._rescale, self._seed = config.rescale, seed
        self._gene_of = {
            target: f"{GENE}.{group.label}" if config.per == "group" else GENE
            for group in weights.groups
            for target in group.targets
        }
        self._fixed, own = {}, []
        if isinstance(config.density, list):
            low, high = config.density
            places = weights.places if config.per == "group" else [-1]
            names = dict.fromkeys(self._gene_of.values())
            own = [(at, Gene(n, low, high)) for at, n in zip(places, names, strict=True)]
        else:
            self._fixed = dict.fromkeys(self._gene_of.values(), config.density)
        super().__init__(weights, own, {gene.name: 1.0 for _, gene in own})
        self.label = f"{weights.label}, with entries dropped at random"

    def statistics(self, genome: Genome) -> dict[str, float]:
        """The mean density, where it is searched, and the weights' statistics."""
        found = list(self.own_values(genome).values())
        own = {GENE: float(np.mean(found))} if found else {}
        return {**own, **self.inner.statistics(self.inside(genome))}

    def decode(self, genome: Genome) -> Recipe:
        """The weights' recipe with a drop in every merge, but those of density 1."""
        densities = {**self._fixed, **self.own_values(genome)}

        def density(merge: Merge) -> float:
            return densities[self._gene_of[merge.slot, merge.group]]

        recipe = self.inner.decode(self.inside(genome))
        return dropped(recipe, density, self._rescale, self._seed)
