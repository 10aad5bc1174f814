"""`Space`: a domain whose genomes decode to recipes, with recipes to compare them with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.common.errors import InputError
from evomerge.recipe import Merge, MergeCoefficient, Piece, Recipe
from evomerge.search.frank_wolfe import Vertices
from evomerge.search.spaces.genes import Domain, Genome

Derivatives = Mapping[MergeCoefficient, float]
"""A recipe's coefficient → the derivative of a loss in it."""
STEP = 1e-5
"""Of an entry of the genome, for differences of `decode`."""


class Space(Domain):
    """A domain whose genomes are recipes.

    Attributes:
        label: what is searched, in a few words.
        notes: what the user should know before the search, one line each.
    """

    label: str
    notes: tuple[str, ...] = ()

    def keep_in(self, folder: Path) -> None:
        """Take the run's folder, where a space may keep files between starts."""
        return None

    @abstractmethod
    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome; every parameter of its methods stands in it, defaults too."""

    def pull_back(self, genome: Genome, derivatives: Derivatives) -> NDArray[np.float64]:
        """Turn a loss's derivatives in a recipe's coefficients into those in its genome.

        By the chain rule, the second factor by differences of `decode`; spaces that know it say it.

        Args:
            genome: whose recipe `decode` gave.
            derivatives: coefficient → dL/dc; those that are missing are 0.

        Returns:
            dL/d entry of the genome, (dimension,): 0 for genes with levels or inactive ones, and
            for those that only decide which entries of tensors are kept.
        """
        found = np.zeros(self.dimension)
        for index, gene in enumerate(self.genes):
            if gene.levels is not None:
                continue
            ends = [np.array(genome, dtype=np.float64) for _ in range(2)]
            ends[0][index], ends[1][index] = genome[index] + STEP, genome[index] - STEP
            ends = [end.clip(0, 1) for end in ends]
            above, below = (_coefficients(self.decode(end)) for end in ends)
            width = ends[0][index] - ends[1][index]
            for key, value in derivatives.items():
                if key in above and key in below:
                    found[index] += value * (above[key] - below[key]) / width
        return found

    def vertices(self) -> Vertices | None:
        """Each model alone as a point between which Frank-Wolfe steps move, and the genes that they
        move; None where experts have no weights of their own.
        """
        return None

    def encode(self, recipe: Recipe) -> Genome:
        """The genome whose recipe is the given one; values out of bounds go to the nearest.

        Raises:
            InputError: the space has no such genomes.
        """
        raise InputError(f"a recipe cannot be read back as a point of this space ({self.label})")

    def point_of(self, recipe: Recipe) -> Genome | None:
        """The genome whose merge is a parent's or baseline's; None where there is none for sure.

        A model's genome is its seed. Other recipes are encoded, and must come back the same.
        """
        for name, parent in self.parents().items():
            if parent.digest == recipe.digest and name in self.seeds:
                return self.seeds[name]
        try:
            genome = self.encode(recipe)
        except InputError:
            return None
        return genome if self.decode(genome).digest == recipe.digest else None

    @abstractmethod
    def parents(self) -> dict[str, Recipe]:
        """The base and each expert as recipes."""

    @abstractmethod
    def baselines(self) -> dict[str, Recipe]:
        """Merges that need no search, by name; identical recipes appear once."""

    def grid(self, points: int) -> dict[str, Recipe]:
        """Merges at `points` values of each searched parameter, the same everywhere, by name.

        Raises:
            InputError: there would be too many; names the key.
        """
        return {}


def _coefficients(recipe: Recipe) -> dict[MergeCoefficient, float]:
    """Every number of a recipe's merges, by its name."""
    owned: list[tuple[Merge, int | None, str | None, Mapping[str, Any]]] = []
    for merge in recipe.merges:
        parts: list[tuple[int | None, Merge | Piece]] = [(None, merge), *enumerate(merge.pieces)]
        for piece, one in parts:
            owned += [(merge, piece, expert, values) for expert, values in one.experts.items()]
            owned.append((merge, piece, None, one.parameters))
    return {
        MergeCoefficient(merge.slot, merge.group, expert, name, piece): value
        for merge, piece, expert, values in owned
        for name, value in values.items()
        if isinstance(value, float)
    }
