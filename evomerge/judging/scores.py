"""The judge and its scores of one recipe: per item first, then in sum with a standard error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from evomerge.config import ConstraintConfig, ObjectiveConfig
from evomerge.judging.constraints import Check, Constraints, Items, Values
from evomerge.judging.objectives import Objective, find_objective

STEP = 1e-6
"""Half the distance over which derivatives by task means are taken."""


@dataclass(frozen=True)
class Scores:
    """The scores of one recipe on one set of items.

    Attributes:
        value: the objective, larger is better.
        se: its standard error over items.
        n: number of items.
        estimated: some items were not measured but estimated.
        items: task → metric value per item, in the study's order.
        objectives: what a multi-objective optimizer maximises, each larger is better; by default
            the value alone.
        violation: the sum of constraint violations; 0 when all constraints hold.
        metrics: measures by name, in their natural direction: each task's mean.
        signs: task → −1 where a smaller metric is better; others count as +1.
        beside: tasks of weight 0, measured beside the score.
        objectives_of: the function from means in the order of `metrics` to objectives, shape (...,
            metrics) → (..., objectives); None: unknown.
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
    beside: frozenset[str] = frozenset()
    objectives_of: Callable[[Values], Values] | None = None

    def __post_init__(self) -> None:
        if not self.objectives:
            object.__setattr__(self, "objectives", (self.value,))

    @property
    def scored_items(self) -> Mapping[str, Values]:
        """The items of the tasks that make up the score."""
        return {task: values for task, values in self.items.items() if task not in self.beside}

    @property
    def fitness(self) -> float:
        """The value; below every feasible one where constraints are broken."""
        return fitness_of(self.value, self.violation)

    @property
    def best_key(self) -> tuple[bool, float]:
        """Sort key for "best so far": measured scores rank above estimates.

        A lucky estimate would hold the place for good.
        """
        return not self.estimated, self.fitness


def fitness_of(value: float, violation: float) -> float:
    """Rank a value by Deb's rule (2000): below every feasible one where constraints are broken."""
    return value if violation <= 0 else -1e9 * (1 + violation)


@dataclass(frozen=True)
class Judge:
    """The campaign's measure: an objective over the means of its tasks.

    Attributes:
        objective: maps signed task means to one number, larger is better.
        tasks: task names, in order.
        weights: one per task; 0 for what is measured beside the score.
        signs: +1 where a larger metric is better, −1 where a smaller one is.
        constraints: bounds on what a recipe may lose against a parent.
        parents: name → items on the split that is judged; see `against`.
    """

    objective: Objective
    tasks: Sequence[str]
    weights: Values
    signs: Values
    constraints: Constraints | None = None
    parents: Mapping[str, Items] = field(default_factory=dict)

    def against(self, parents: Mapping[str, Items]) -> Judge:
        """Give the judge of one split, on which the parents have these items."""
        return replace(self, parents=parents)

    def scores(self, items: Items) -> Scores:
        """Sum up item values, with the delta-method standard error.

        se² = Σ_t (∂f/∂m_t)² s_t² / n_t, the derivatives taken numerically.
        """
        means = self._means(items)
        errors = np.array([_standard_error(items[task]) for task in self.tasks])
        return self._summed_up(items, means, errors, self.checks(items))

    def estimated(self, items: Items, estimates: Mapping[str, tuple[float, float]]) -> Scores:
        """Sum up a recipe of which some items were not measured.

        Its standard error is that of a score on documents like these: the error of the estimated
        mean over the split's items, and that of the split's own N items, s_t² / N_t.

        Args:
            items: task → values, NaN where not measured.
            estimates: task → the estimated mean over all items, and its standard error.
        """
        # 1. the items that were measured
        known = {task: np.isfinite(values) for task, values in items.items()}
        measured = {task: values[known[task]] for task, values in items.items()}
        # 2. estimated means; errors of the estimate and of sampling N items, independent
        means = np.array([estimates[task][0] for task in self.tasks])
        sampling = [
            _standard_error(measured[t]) * np.sqrt(len(measured[t]) / len(items[t]))
            for t in self.tasks
        ]
        errors = np.hypot([estimates[task][1] for task in self.tasks], sampling)
        # 3. constraints hold or not on the measured items, for the parents too
        parents = {
            name: {task: found[task][known[task]] for task in known}
            for name, found in self.parents.items()
        }
        checks = replace(self, parents=parents).checks(measured)
        scores = self._summed_up(measured, means, errors, checks)
        return replace(scores, items=items, estimated=True)

    def _summed_up(
        self, items: Items, means: Values, errors: Values, checks: Sequence[Check]
    ) -> Scores:
        """Put the scores together; `errors`: standard errors of the means, shape (tasks,)."""
        return Scores(
            value=float(self.value(means)),
            se=self.error(means, errors),
            n=sum(len(items[t]) for t, w in zip(self.tasks, self.weights, strict=True) if w > 0),
            items=items,
            objectives=self._goals(means),
            violation=sum(check.violation for check in checks),
            metrics=dict(zip(self.tasks, means.tolist(), strict=True)),
            signs=dict(
                zip(self.tasks, np.broadcast_to(self.signs, len(means)).tolist(), strict=True)
            ),
            beside=frozenset(t for t, w in zip(self.tasks, self.weights, strict=True) if w == 0),
            objectives_of=self.objectives_of,
        )

    def error(self, means: Values, errors: Values) -> float:
        """Give the value's standard error by the delta method; `errors`: of the means, (tasks,)."""
        above, below = self.value(self._around(means))
        slopes = (above - below) / (2 * STEP)
        return float(np.sqrt(np.sum((slopes * errors) ** 2)))

    def objectives_of(self, means: Values) -> Values:
        """Give the goals that are maximised, of raw task means: (..., tasks) → (..., goals)."""
        goals = self.objective.goals
        if goals is None:
            return self.value(means)[..., None]
        given = self.objective.given(goals, self._known)
        return goals(means * self.signs, self.weights, **given)

    def slopes(self, means: Values) -> Values:
        """Give the derivatives of `objectives_of`: shape (..., tasks) → (..., goals, tasks)."""
        steps = np.stack([np.eye(len(self.tasks)), -np.eye(len(self.tasks))]) * STEP
        around = self.objectives_of(means[..., None, None, :] + steps)
        return np.swapaxes(around[..., 0, :, :] - around[..., 1, :, :], -1, -2) / (2 * STEP)

    def _around(self, means: Values) -> Values:
        """Each mean a step up and down, shape (2, tasks, tasks)."""
        return means + np.stack([np.eye(len(means)), -np.eye(len(means))]) * STEP

    def value(self, means: Values) -> Values:
        """Give the objective of raw task means, shape (..., tasks) → (...).

        An objective that compares with the parents is the weighted mean as long as there are none,
        which is while they themselves are measured.
        """
        objective, signed = self.objective, means * self.signs
        if objective.needs_parents and not self.parents:
            return signed @ self.weights / self.weights.sum()
        return objective.function(
            signed, self.weights, **objective.given(objective.function, self._known)
        )

    def value_of(self, items: Items) -> float:
        """Give the value of `scores`, without measuring constraints."""
        return float(self.value(self._means(items)))

    def checks(self, items: Items) -> list[Check]:
        """Measure every constraint; none while the parents themselves are measured."""
        if self.constraints is None or not self.parents:
            return []
        return self.constraints.measure(items, self.parents)

    @property
    def goals(self) -> int:
        """The number of goals of a multi-objective optimizer; 1 where there is the value alone."""
        return len(self._goals(np.zeros(len(self.tasks)))) or 1

    def _goals(self, means: Values) -> tuple[float, ...]:
        """The goals; empty where the value is the only one, which `Scores` fills in."""
        return () if self.objective.goals is None else tuple(self.objectives_of(means).tolist())

    @cached_property
    def _known(self) -> dict[str, Any]:
        """The arguments that objectives may name in their signatures."""
        parents = [self._means(found) * self.signs for found in self.parents.values()]
        return {"parents": np.array(parents), "tasks": self.tasks, "signs": self.signs}

    def _means(self, items: Items) -> Values:
        return np.array([np.mean(items[task]) for task in self.tasks])


@dataclass(frozen=True)
class JudgedTask:
    """One task, or measure beside a task, as the judge sees it.

    Attributes:
        name: as in the campaign file.
        weight: of its mean in the objective; 0 for what is measured beside the score.
        higher_is_better: the direction of its metric.
        corpus: whether it is a score of the whole corpus (`judging.corpus_values`).
    """

    name: str
    weight: float
    higher_is_better: bool
    corpus: bool = False


def build_judge(
    tasks: Sequence[JudgedTask],
    objective: ObjectiveConfig,
    constraints: Sequence[ConstraintConfig],
    models: Sequence[str] | None = None,
) -> Judge:
    """Build the judge of a campaign, from its config or from what its study recorded.

    It knows no parents' items yet: `Judge.against` adds them.

    Args:
        tasks: in the order of the study.
        objective: `fitness.objective` of the campaign file.
        constraints: `fitness.constraints`.
        models: names that constraints may compare with; None leaves the constraints unchecked.

    Raises:
        InputError: the objective or a constraint names what does not exist; names the key.
    """
    names = [task.name for task in tasks]
    signs = [1.0 if task.higher_is_better else -1.0 for task in tasks]
    bounds = Constraints(
        constraints,
        dict(zip(names, signs, strict=True)),
        beside=[task.name for task in tasks if task.weight == 0],
        corpora=[task.name for task in tasks if task.corpus],
    )
    if models is not None:
        bounds.check(names, models)
    return Judge(
        objective=find_objective(objective.kind, "fitness.objective", objective.options, names),
        tasks=names,
        weights=np.array([task.weight for task in tasks]),
        signs=np.array(signs),
        constraints=bounds,
    )


def _standard_error(values: Values) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
