"""Scores of one recipe: per item first, then in sum with a standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evomerge.judging.objectives import Objective

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What is known of one recipe on one set of items.

    Attributes:
        value: the objective, larger is better.
        se: its standard error over items.
        n: number of items.
        estimated: some items were not measured but estimated.
        items: task → metric value per item, in the study's order.
        objectives: what a multi-objective optimizer maximises, each larger is better; by default
            the value alone.
        violation: by how much constraints are broken in sum; 0 when all hold.
        metrics: measures by name, in their natural direction: each task's mean.
        signs: task → −1 where a smaller metric is better; others count as +1.
    """

    value: float
    se: float
    n: int
    estimated: bool = False
    items: Mapping[str, Values] = field(default_factory=dict)
    objectives: tuple[float, ...] = ()
    violation: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    signs: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.objectives:
            object.__setattr__(self, "objectives", (self.value,))

    @property
    def fitness(self) -> float:
        """The value; below every feasible one where constraints are broken (Deb 2000's rule)."""
        return self.value if self.violation <= 0 else -1e9 * (1 + self.violation)


@dataclass(frozen=True)
class Judge:
    """The campaign's measure: an objective over the means of its tasks.

    Attributes:
        objective: maps signed task means to one number, larger is better.
        tasks: task names, in order.
        weights: one per task.
        signs: +1 where a larger metric is better, −1 where a smaller one is.
    """

    objective: Objective
    tasks: Sequence[str]
    weights: Values
    signs: Values

    def scores(self, items: Mapping[str, Values]) -> Scores:
        """Sum up item values, with the delta-method standard error.

        se² = Σ_t (∂f/∂m_t)² s_t² / n_t, the derivatives taken numerically.
        """
        means = np.array([np.mean(items[task]) for task in self.tasks])
        errors = np.array([_standard_error(items[task]) for task in self.tasks])
        step = 1e-6
        slopes = np.array(
            [
                (self.value(means + delta) - self.value(means - delta)) / (2 * step)
                for delta in np.eye(len(means)) * step
            ]
        )
        return Scores(
            value=float(self.value(means)),
            se=float(np.sqrt(np.sum((slopes * errors) ** 2))),
            n=sum(len(items[task]) for task in self.tasks),
            items=items,
            metrics=dict(zip(self.tasks, means.tolist(), strict=True)),
            signs=dict(
                zip(self.tasks, np.broadcast_to(self.signs, len(means)).tolist(), strict=True)
            ),
        )

    def value(self, means: Values) -> Values:
        """The objective of raw task means, shape (..., tasks) → (...)."""
        return self.objective.function(means * self.signs, self.weights)


def _standard_error(values: Values) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
