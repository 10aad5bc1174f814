"""Several goals at once, and the preference among recipes that no other dominates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.common.errors import InputError
from evomerge.common.plugins import nearest
from evomerge.judging.objectives import objective
from evomerge.judging.pareto import front as front_of
from evomerge.judging.pareto import knee_scores

Values = NDArray[np.float64]
PENALTY = 10.0
"""The cost of a relative breach of a preferred bound, in units of the goal that is to be best."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Goal(_Strict):
    """A task or measure; `minimize` defaults to the direction of its metric."""

    metric: str
    minimize: bool | None = None


class Bound(_Strict):
    """A bound that a goal must reach, or must not exceed, in its natural direction and units."""

    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Bound:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("write either at_least or at_most")
        return self


class Weights(_Strict):
    """The largest Σ weight · goal, each goal signed so that larger is better."""

    weights: dict[str, float] = Field(min_length=1)


class BestWhere(_Strict):
    """The best of one goal among those that keep bounds on others."""

    best: str
    where: dict[str, Bound] = Field(min_length=1)


Of = Sequence[str | Goal]
Prefer = Literal["knee"] | Weights | BestWhere


def goals(
    means: Values,
    weights: Values,
    tasks: Sequence[str],
    signs: Values,
    *,
    of: Of,
    prefer: Prefer = "knee",
) -> Values:
    """Give the goals' means, larger is better, shape (..., goals)."""
    turned = np.array([signs[place] for place in _places(tasks, of)])
    for place, goal in enumerate(of):
        if isinstance(goal, Goal) and goal.minimize is not None:
            turned[place] = -1.0 if goal.minimize else 1.0
    return _natural(means, tasks, signs, of) * turned


def ranking(points: Values, values: Values, *, of: Of, prefer: Prefer = "knee") -> Values:
    """Score points, shape (n, goals), by the preference; −∞ off the front."""
    front = front_of(points)
    scores = np.full(len(points), -np.inf)
    scores[front] = knee_scores(points[front]) if prefer == "knee" else values[front]
    return scores


def check(tasks: Sequence[str], *, of: Of, prefer: Prefer = "knee") -> None:
    """Check that goals are tasks, and that the preference names goals.

    Raises:
        InputError: they are not; names the option.
    """
    names = _names(of)
    for name in names:
        if name not in tasks:
            raise InputError(f"of: no task or measure {name!r}; {nearest(name, tasks)}")
    if len(set(names)) < max(2, len(names)):
        raise InputError("of: name two goals or more, each once; for one, use objective: mean")
    if isinstance(prefer, Weights):
        preferred = {"weights": list(prefer.weights)}
    elif isinstance(prefer, BestWhere):
        preferred = {"best": [prefer.best], "where": list(prefer.where)}
    else:
        return
    for key, wanted in preferred.items():
        for name in wanted:
            if name not in names:
                raise InputError(f"prefer.{key}: {name!r} is no goal; {nearest(name, names)}")


@objective(goals=goals, ranking=ranking, check=check)
def pareto(
    means: Values,
    weights: Values,
    tasks: Sequence[str],
    signs: Values,
    parents: Values,
    *,
    of: Of,
    prefer: Prefer = "knee",
) -> Values:
    """The front over several goals; optimizers of one value get the number that `prefer` gives.

    Use it, with nsga2, nsga3 or map, where you want to see what one goal costs the other.

    Args:
        of: the goals: names of tasks and measures.
        prefer: the winner of the front: `knee` (where the front bends; the scalar is the mean of
            the goals, each in units of the parents' largest), `{weights: {goal: w}}`, or
            `{best: goal, where: {goal: {at_most: x}}}`.

    Example: `kind: pareto, of: [gsm8k, gsm8k.response_tokens], prefer: knee`
    """
    points = goals(means, weights, tasks, signs, of=of, prefer=prefer)
    names = _names(of)
    if isinstance(prefer, Weights):
        return points @ np.array([prefer.weights.get(name, 0.0) for name in names])
    if isinstance(prefer, BestWhere):
        natural = _natural(means, tasks, signs, of)
        value = points[..., names.index(prefer.best)]
        for name, bound in prefer.where.items():
            value = value - PENALTY * _breach(natural[..., names.index(name)], bound)
        return value
    size = np.abs(goals(parents, weights, tasks, signs, of=of, prefer=prefer)).max(axis=0)
    return (points / np.where(size == 0, 1.0, size)).mean(axis=-1)


def _breach(natural: Values, bound: Bound) -> Values:
    """The breach of a bound as a share of the bound, or in its units where the bound is 0."""
    if bound.at_least is not None:
        return np.maximum(0, bound.at_least - natural) / (abs(bound.at_least) or 1.0)
    assert bound.at_most is not None
    return np.maximum(0, natural - bound.at_most) / (abs(bound.at_most) or 1.0)


def _natural(means: Values, tasks: Sequence[str], signs: Values, of: Of) -> Values:
    """The goals' means as measured, no sign turned."""
    return (means * signs)[..., _places(tasks, of)]


def _names(of: Of) -> list[str]:
    return [goal if isinstance(goal, str) else goal.metric for goal in of]


def _places(tasks: Sequence[str], of: Of) -> list[int]:
    return [list(tasks).index(name) for name in _names(of)]
