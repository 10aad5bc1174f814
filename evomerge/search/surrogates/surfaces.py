"""What a search has measured as surfaces over the genes, one for every task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from evomerge.search.spaces.genes import Genome
from evomerge.search.surrogates.quadratic import Floats, Quadratic, Surface

SURE = 0.6
"""The chance that constraints hold from which on they count as kept."""


class Result(NamedTuple):
    """What one recipe gave.

    Attributes:
        point: the genes, shape (genes,).
        means: what has a surface: each task's mean.
        items: how many a mean is over.
        objectives: what is maximised.
        violation: by how much constraints are broken; 0 when they hold.
        se: the score's standard error.
    """

    point: Genome
    means: tuple[float, ...]
    items: int
    objectives: tuple[float, ...]
    violation: float
    se: float


@dataclass(frozen=True)
class Surfaces:
    """A quadratic for every task's mean, and one for the chance that constraints hold.

    Attributes:
        points: the results', shape (n, genes).
        tasks: one for each mean.
        holding: None where no result broke a constraint.
        misses: how far each result is off the surfaces through the others, squared, shape (n,); 1
            is as far as results are off their mean.
    """

    points: Genome
    tasks: Sequence[Quadratic]
    holding: Quadratic | None
    misses: Floats

    @staticmethod
    def fit(results: Sequence[Result], *, interactions: bool) -> Surfaces:
        """Through results; one of a larger standard error, such as an estimate, weighs less."""
        points = np.stack([result.point for result in results])
        squares = np.array([result.se for result in results]) ** 2
        weights = 1 / (1 + squares / (np.median(squares) or squares.max() or 1.0))

        def through(values: Floats, share: int | None) -> Quadratic:
            return Quadratic.fit(points, values, weights, share=share, interactions=interactions)

        tasks, missed = [], np.zeros(len(results))
        for means in np.array([result.means for result in results]).T:
            share = results[-1].items if means.min() >= 0 and means.max() <= 1 else None
            tasks.append(through(means, share))
            missed += tasks[-1].misses / (np.var(means) or 1.0)
        holds = np.array([float(result.violation <= 0) for result in results])
        holding = None if holds.all() else through(holds, 1)
        return Surfaces(points, tasks, holding, missed / len(tasks))

    def drawn(self, rng: np.random.Generator) -> list[Surface]:
        """Surfaces of the tasks' means, as likely as the results make them."""
        return [task.drawn(rng) for task in self.tasks]

    def violations(self, points: Genome) -> Floats:
        """By how much the chance is too small that constraints hold, (n, genes) → (n,)."""
        if self.holding is None:
            return np.zeros(len(points))
        return np.maximum(0.0, SURE - self.holding(points))
