"""Choosing the winner: finalists by search score, the winner among them by select score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from evomerge.judging.objectives import Objective
from evomerge.judging.scores import Scores


class Ranked(Protocol):
    """Something with a recipe's digest and a value, larger is better; None when it failed."""

    @property
    def digest(self) -> str:
        """The recipe's content digest."""

    @property
    def value(self) -> float | None:
        """The objective."""


R = TypeVar("R", bound=Ranked)
T = TypeVar("T")


@dataclass(frozen=True)
class Judged(Generic[T]):
    """A trial with its scores, which are None when it failed.

    One that was not measured on all items has scores, but no value: it can inform an optimizer,
    and is never chosen.
    """

    trial: T
    digest: str
    scores: Scores | None

    @property
    def value(self) -> float | None:
        """The objective; with constraints broken, less than any value with all of them kept."""
        return self.scores.fitness if self.scores and not self.scores.estimated else None


def finalists(trials: Sequence[R], count: int) -> list[R]:
    """Pick the best `count` distinct recipes by value; of equals, the earlier trial comes first."""
    scored = [(value, trial) for trial in trials if (value := trial.value) is not None]
    ranked = sorted(scored, key=lambda one: -one[0])
    first: dict[str, R] = {}
    for _, trial in ranked:
        first.setdefault(trial.digest, trial)
    return list(first.values())[:count]


def best(trials: Sequence[R]) -> R | None:
    """Pick the best of `trials` by value, or None if all failed; of equals, the earlier one."""
    scored = [(value, trial) for trial in trials if (value := trial.value) is not None]
    return max(scored, key=lambda one: one[0])[1] if scored else None


def leading(trials: Sequence[R]) -> list[R | None]:
    """List the best of the first one, two, … of `trials`; None as long as all failed."""
    leaders: list[R | None] = []
    for trial in trials:
        rivals = [leaders[-1], trial] if leaders and leaders[-1] else [trial]
        leaders.append(best([rival for rival in rivals if rival is not None]))
    return leaders


def by_preference(judged: Sequence[Judged[T]], objective: Objective) -> list[Judged[T]]:
    """Rank distinct recipes, the preferred first: of a multi-objective campaign the front alone.

    Nothing that breaks a constraint stands before what keeps all; where nothing keeps all, the
    smaller violation comes first.
    """
    ranked = finalists(judged, len(judged))
    if objective.ranking is None:
        return ranked
    feasible = [one for one in ranked if one.scores and one.scores.violation <= 0]
    if not feasible:
        return ranked
    points = np.array([one.scores.objectives for one in feasible if one.scores])
    values = np.array([one.scores.value for one in feasible if one.scores])
    scores = objective.ranking(points, values, **objective.options)
    order = np.argsort(-scores, kind="stable")
    return [feasible[place] for place in order if np.isfinite(scores[place])]


def parents_last(ranked: Sequence[Judged[T]], parents: Sequence[Judged[T]]) -> list[Judged[T]]:
    """Put those of a front behind that a parent matches or dominates in all goals.

    So that what is preferred of several goals is no parent over again where anything else is there.

    Args:
        ranked: the front, the preferred first.
        parents: judged on the same split.
    """
    theirs = [np.array(p.scores.objectives) for p in parents if p.scores and p.value is not None]

    def adds_nothing(one: Judged[T]) -> bool:
        ours = np.array(one.scores.objectives) if one.scores else np.empty(0)
        return any((parent >= ours).all() for parent in theirs)

    return sorted(ranked, key=adds_nothing)
