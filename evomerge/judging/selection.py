"""Choosing the winner: finalists by search score, the winner among them by select score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Ranked(Protocol):
    """Something with a recipe's digest and a value, larger is better; None when it failed."""

    @property
    def digest(self) -> str:
        """The recipe's content digest."""

    @property
    def value(self) -> float | None:
        """The objective."""


R = TypeVar("R", bound=Ranked)


def finalists(trials: Sequence[R], count: int) -> list[R]:
    """The best `count` distinct recipes by value; of equals, the earlier trial comes first."""
    scored = [trial for trial in trials if trial.value is not None]
    ranked = sorted(scored, key=lambda trial: -(trial.value or 0.0))
    first: dict[str, R] = {}
    for trial in ranked:
        first.setdefault(trial.digest, trial)
    return list(first.values())[:count]


def best(trials: Sequence[R]) -> R | None:
    """The best of `trials` by value, or None if all failed; of equals, the earlier one."""
    top = finalists(trials, 1)
    return top[0] if top else None


def leading(trials: Sequence[R]) -> list[R | None]:
    """The best of the first one, two, … of `trials`; None as long as all failed."""
    leaders: list[R | None] = []
    for trial in trials:
        rivals = [leaders[-1], trial] if leaders and leaders[-1] else [trial]
        leaders.append(best([rival for rival in rivals if rival is not None]))
    return leaders
