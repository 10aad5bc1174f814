"""`Space`: a domain whose genomes decode to recipes, with recipes to compare them with."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from evomerge.common.errors import InputError
from evomerge.recipe import Recipe
from evomerge.search.spaces.genes import Domain, Genome


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

    def encode(self, recipe: Recipe) -> Genome:
        """The genome whose recipe is the given one; values out of bounds go to the nearest.

        Raises:
            InputError: the space has no such genomes.
        """
        raise InputError(f"a recipe cannot be read back as a point of this space ({self.label})")

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
