"""LiNeS over a space of weights: two genes that scale what is merged by its depth."""

from __future__ import annotations

from evomerge.common.errors import InputError
from evomerge.config import LinesConfig
from evomerge.methods import Method
from evomerge.methods.core.lines_in_recipes import scaled_by_depth
from evomerge.recipe import Recipe
from evomerge.search.spaces.genes import Gene, Genome
from evomerge.search.spaces.space import Space
from evomerge.search.spaces.weights import WeightSpace
from evomerge.search.spaces.wrapped import Wrapped

KEY = "space.weights.lines"
NAMES = ("alpha", "beta")


class LinesSpace(Wrapped):
    """A space of weights whose task vectors are scaled by α + β·l/(L−1) in layer l of L.

    The genes `lines.alpha` and `lines.beta` stand before those of the weights; one that has a value
    instead of bounds has no gene. Source: Wang et al. 2024, arXiv:2410.17146, eq. 2.
    """

    def __init__(
        self, config: LinesConfig, inner: Space, weights: WeightSpace, layers: int
    ) -> None:
        """Put the two together; `inner` is the space of `weights`, or one over it.

        Raises:
            InputError: a method has no `lambda`, or a scale would leave its range.
        """
        self._layers = layers
        given = {name: getattr(config, name) for name in NAMES}
        self._fixed = {f"lines.{n}": float(v) for n, v in given.items() if not isinstance(v, list)}
        bounds = {n: v for n, v in given.items() if isinstance(v, list)}
        scales = [(-1, Gene(f"lines.{name}", low, high)) for name, (low, high) in bounds.items()]
        for method in weights.methods:
            _check(method, weights, config)
        super().__init__(inner, scales, {"lines.alpha": 1.0, "lines.beta": 0.0})
        self.label = f"{inner.label}, scaled by depth"

    def statistics(self, genome: Genome) -> dict[str, float]:
        """The scales, and the inner space's statistics."""
        return {**self.own_values(genome), **self.inner.statistics(self.inside(genome))}

    def decode(self, genome: Genome) -> Recipe:
        """The inner space's recipe with every `lambda` scaled."""
        scales = {**self._fixed, **self.own_values(genome)}
        return scaled_by_depth(
            self.inner.decode(self.inside(genome)),
            self._layers,
            alpha=scales["lines.alpha"],
            beta=scales["lines.beta"],
        )


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
