"""`LayerPaths`, the base class of spaces of layer sequences, and their registry.

A kind of path is a class in a file of this folder under `@path_kind("name")`. Its constructor takes
`(models, depth)` and then keyword-only options, whose annotations and defaults are the schema of
the campaign file's `space.path` section.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from evomerge.common.errors import InputError
from evomerge.common.plugins import Registry, check_options, nearest
from evomerge.config import PathConfig
from evomerge.search.spaces.genes import Domain, Gene, Genome, Value

MERGED = "merged"
"""The name, among the models of a path, of the merge that `space.weights` searches."""


@dataclass(frozen=True)
class Layer:
    """One layer of a path: layer `layer` of the model, or the average of that layer over several.

    `scale` multiplies the hidden state that enters it.
    """

    models: tuple[str, ...]
    layer: int
    scale: float = 1.0


class LayerPaths(Domain, ABC):
    """Genes that say which layers of which models a path runs through.

    Attributes:
        depth: layers of each model.
        outside: the model that gives embeddings, final norm and head.
        scaled: whether paths may scale what enters a layer.
    """

    outside: str
    scaled: bool = False

    def __init__(self, models: Sequence[str], depth: int) -> None:
        """`models`: the base, the experts and, where weights are searched too, `MERGED`.

        A kind sets its options' attributes, and then calls this with genes of its own.
        """
        self.models = tuple(models)
        self.depth = depth

    def _begin(self, genes: Sequence[Gene], initial: Genome, seeds: Mapping[str, Genome]) -> None:
        """Set the genes, and keep those of `seeds` that are their model's own path."""
        super().__init__(genes, initial)
        self.seeds = {name: seed for name, seed in seeds.items() if self._is_own(name, seed)}
        if not self.genes and MERGED not in self.models:
            raise InputError("space.path: nothing to search; every option has one value only")

    @abstractmethod
    def layers(self, params: Mapping[str, Value]) -> list[Layer]:
        """The path of natural values by gene name, as `params` gives them."""

    def path(self, genome: Genome) -> list[Layer]:
        """The path of a genome."""
        return self.layers(self.params(genome))

    def statistics(self, genome: Genome) -> dict[str, float]:
        """`depth`: layers of the path. `switches`: layers that follow one of another model."""
        path = self.path(genome)
        switches = sum(a.models != b.models for a, b in pairwise(path))
        return {"depth": float(len(path)), "switches": float(switches)}

    def _model(self, name: str, option: str) -> str:
        """The model that an option names.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.models:
            raise InputError(
                f"space.path.{option}: no model is called {name!r}; {nearest(name, self.models)}"
            )
        return name

    def _bounds(
        self, given: tuple[int, int] | None, default: tuple[int, int], option: str, least: int = 0
    ) -> tuple[int, int]:
        """An option's [low, high], which must lie in [least, depth].

        Raises:
            InputError: it does not, or crosses.
        """
        low, high = default if given is None else given
        if not least <= low <= high <= self.depth:
            raise InputError(
                f"space.path.{option} is [{low}, {high}]; write [low, high] with {least} ≤ low ≤ "
                f"high ≤ {self.depth}, the models' number of layers"
            )
        return low, high

    def _is_own(self, name: str, genome: Genome) -> bool:
        return self.path(genome) == [Layer((name,), layer) for layer in range(self.depth)]


REGISTRY = Registry[type[LayerPaths]]("kind of path", "evomerge.search.spaces.paths")


def path_kind(name: str) -> Callable[[type[LayerPaths]], type[LayerPaths]]:
    """Register a class as the kind of path called `name` in campaign files."""

    return lambda kind: REGISTRY.add(name, kind)


def path_kinds() -> Mapping[str, type[LayerPaths]]:
    """Every registered kind of path by name, in alphabetical order."""
    return REGISTRY.all()


def build_paths(config: PathConfig, models: Sequence[str], depth: int) -> LayerPaths:
    """The paths that a campaign file names, with their options checked.

    Raises:
        InputError: no such kind, an unknown option, or an option's value that does not fit.
    """
    kind = REGISTRY.find(config.kind, "space.path.kind")
    return kind(models, depth, **check_options(kind, config.options, "space.path", of=config.kind))
