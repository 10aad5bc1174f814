"""LiNeS over a space of weights: two genes that scale what is merged by its depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evomerge.errors import InputError
from evomerge.methods.registry import Method
from evomerge.recipe import Recipe
from evomerge.recipe.lines import scaled_by_depth
from evomerge.search.domain import Gene, Genome
from evomerge.search.space import Space
from evomerge.search.weights import WeightSpace
from evomerge.sections import LinesConfig

KEY = "space.weights.lines"
NAMES = ("alpha", "beta")


class LinesSpace(Space):
    """A space of weights whose task vectors are scaled by α + β·l/(L−1) in layer l of L.

    The genes `lines.alpha` and `lines.beta` stand before those of the weights; one that has a value
    instead of bounds has no gene. Source: Wang et al. 2024, arXiv:2410.17146, eq. 2.
    """

    def __init__(self, config: LinesConfig, weights: WeightSpace, layers: int) -> None:
        """Put the two together.

        Raises:
            InputError: a method has no `lambda`, or a scale would leave its range.
        """
        self._weights = weights
        self._layers = layers
        given = {name: getattr(config, name) for name in NAMES}
        self._fixed = {n: float(v) for n, v in given.items() if not isinstance(v, list)}
        bounds = {n: v for n, v in given.items() if isinstance(v, list)}
        scales = [Gene(f"lines.{name}", low, high) for name, (low, high) in bounds.items()]
        for method in weights.methods:
            _check(method, weights, config)
        self._split = len(scales)
        plain = {"lines.alpha": 1.0, "lines.beta": 0.0}
        first = np.array([gene.unit(plain[gene.name]) for gene in scales])
        super().__init__([*scales, *weights.genes], np.concatenate([first, weights.initial]))
        self.label = f"{weights.label}, scaled by depth"

    @property
    def cuts(self) -> Sequence[int]:
        """The weights' cuts."""
        return [0, *(self._split + cut for cut in self._weights.cuts if cut or self._split)]

    def keep_in(self, folder: Path) -> None:
        """Told to the weights too."""
        self._weights.keep_in(folder)

    def statistics(self, genome: Genome) -> dict[str, float]:
        """The scales, and the weights' statistics."""
        own = {gene.name: float(gene.value(u)) for gene, u in self._scales(genome)}
        return {**own, **self._weights.statistics(genome[self._split :])}

    def decode(self, genome: Genome) -> Recipe:
        """The weights' recipe with every `lambda` scaled."""
        scales = {
            **self._fixed,
            **{g.name.split(".")[1]: g.value(u) for g, u in self._scales(genome)},
        }
        recipe = self._weights.decode(genome[self._split :])
        return scaled_by_depth(
            recipe, self._layers, alpha=float(scales["alpha"]), beta=float(scales["beta"])
        )

    def parents(self) -> dict[str, Recipe]:
        """The base and each expert as recipes."""
        return self._weights.parents()

    def baselines(self) -> dict[str, Recipe]:
        """Those of the weights, unscaled."""
        return self._weights.baselines()

    def _scales(self, genome: Genome) -> list[tuple[Gene, float]]:
        return list(zip(self.genes[: self._split], genome[: self._split], strict=True))


def _check(method: Method, weights: WeightSpace, config: LinesConfig) -> None:
    """Refuse what some genome would make of `lambda`."""
    parameter = method.parameters.get("lambda")
    if parameter is None:
        raise InputError(
            f"{KEY}: {method.name} has no 'lambda' to scale; use a method of task vectors, such "
            "as task_arithmetic for linear"
        )
    value = weights.fixed(method, "lambda")
    if value is None:
        raise InputError(f"{KEY}: alpha scales lambda, which space.weights.genes must leave fixed")
    spans = [v if isinstance(v, list) else [v, v] for v in (config.alpha, config.beta)]
    for alpha in spans[0]:
        for scale in (alpha, *(alpha + beta for beta in spans[1])):
            parameter.check(float(value) * scale, f"{KEY}: with alpha {alpha:g}, lambda")
