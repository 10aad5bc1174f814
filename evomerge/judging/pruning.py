"""The pruning test: a candidate on a rung is pruned, or promoted to more items.

Asynchronous successive halving (Li et al. 2020, ASHA) promotes a candidate that ranks among the
best 1/η of those that have reached the rung by then. Here the rank has to be significant: a
candidate is pruned when enough others beat it on identical items with a stated confidence, and
promoted otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from evomerge.judging.constraints import Items, Values
from evomerge.judging.scores import Judge

TIE = 1e-12
"""Values closer than this differ by rounding alone."""


class Incumbents:
    """Candidates measured on the same items, with whom another one is compared.

    What the comparison needs of each of them alone is computed once, when it is added: a decision
    among 20,000 is one product of a matrix and a vector for each task.
    """

    def __init__(self, judge: Judge) -> None:
        """Begin with none; `judge` gives the goals."""
        self._judge = judge
        self._rows: dict[str, _Rows] = {}  # task: scores less their mean, (incumbents, items)
        self._means, self._goals = _Rows(), _Rows()  # (incumbents, tasks), (incumbents, goals)
        self._slopes, self._spreads = _Rows(), _Rows()  # (incumbents, goals, tasks), (…, tasks)

    def __len__(self) -> int:
        """Number of incumbents."""
        return len(self._means)

    def add(self, others: Items) -> None:
        """Add some.

        Args:
            others: task → scores, shape (others, items), none missing.
        """
        rows = {task: np.asarray(others[task], np.float64) for task in self._judge.tasks}
        means = np.stack([found.mean(axis=-1) for found in rows.values()], axis=-1)
        spreads = np.zeros_like(means)
        for place, (task, found) in enumerate(rows.items()):
            centred = found - means[:, [place]]
            self._rows.setdefault(task, _Rows()).add(centred)
            if (n := centred.shape[-1]) > 1:
                spreads[:, place] = (centred**2).sum(axis=-1) / (n - 1)
        self._means.add(means)
        self._spreads.add(spreads)
        self._slopes.add(self._judge.slopes(means))
        self._goals.add(self._judge.objectives_of(means))

    def beating(self, ours: Items, confidence: float) -> NDArray[np.bool_]:
        """Tell which of them beat a candidate in every goal, each with `confidence`.

        A one-sided paired test of the difference on identical items, normal, its variance by the
        delta method: with f the goal and y an item's two scores,
        Σ_t Var(∂f/∂m_t y − ∂f′/∂m_t y′) / n_t.

        Args:
            ours: task → scores, shape (items,), none missing.
            confidence: between .5 (the better mean wins) and 1.

        Returns:
            shape (incumbents,)
        """
        tasks = self._judge.tasks
        # 1. our task means and the goals' derivatives there: (tasks,), (goals, tasks)
        means = np.stack([ours[task].mean(axis=-1) for task in tasks], axis=-1)
        slopes, theirs = self._judge.slopes(means), self._slopes.values
        # 2. the variance of each goal's difference, shape (incumbents, goals); by its parts,
        #    Var(a y′ − s y) = a² Var y′ − 2 a s Cov(y′, y) + s² Var y
        variance = np.zeros((len(self), len(slopes)))
        for place, task in enumerate(tasks):
            if (n := len(ours[task])) > 1:
                centred = np.asarray(ours[task], np.float64)
                centred = centred - centred.mean()
                shared = self._rows[task].values @ centred / (n - 1)
                spread, own = self._spreads.values[:, place], centred @ centred / (n - 1)
                a, s = theirs[:, :, place], slopes[:, place]
                variance += (a**2 * spread[:, None] - 2 * a * s * shared[:, None] + s**2 * own) / n
        # 3. beaten where every goal's difference exceeds its bound
        bound = NormalDist().inv_cdf(confidence) * np.sqrt(np.maximum(variance, 0.0))
        margin = self._goals.values - self._judge.objectives_of(means) - bound
        return np.all(margin > TIE, axis=-1)

    def prune(self, ours: Items, keep: float, confidence: float) -> bool:
        """Prune a candidate when at least ⌈keep·n⌉ of n incumbents beat it; see `beating`.

        Without incumbents it is promoted: so the first to reach a rung always is, and some
        candidate is measured on all items.
        """
        if not len(self):
            return False
        return int(self.beating(ours, confidence).sum()) >= math.ceil(keep * len(self))


class _Rows:
    """Rows of one shape, appended in amortised constant time."""

    def __init__(self) -> None:
        self._held, self._count = np.empty((0,)), 0

    def __len__(self) -> int:
        return self._count

    @property
    def values(self) -> Values:
        """The rows, shape (rows, …)."""
        return self._held[: self._count]

    def add(self, rows: Values) -> None:
        """Append rows, shape (rows, …)."""
        count = self._count + len(rows)
        if count > len(self._held):
            grown = np.empty((max(count, 2 * len(self._held)), *rows.shape[1:]))
            if self._count:
                grown[: self._count] = self.values
            self._held = grown
        self._held[self._count : count] = rows
        self._count = count


def beaten_by(judge: Judge, ours: Items, others: Items, confidence: float) -> NDArray[np.bool_]:
    """Tell which of the others beat a candidate, as `Incumbents.beating`.

    Args:
        judge: gives the goals.
        ours: task → scores, shape (items,), none missing.
        others: task → scores on the same items, shape (others, items).
        confidence: of each comparison.

    Returns:
        shape (others,)
    """
    return _among(judge, others).beating(ours, confidence)


def is_pruned(judge: Judge, ours: Items, incumbents: Items, keep: float, confidence: float) -> bool:
    """Tell whether a candidate is pruned, as `Incumbents.prune`; arguments as of `beaten_by`."""
    return _among(judge, incumbents).prune(ours, keep, confidence)


def _among(judge: Judge, others: Items) -> Incumbents:
    found = Incumbents(judge)
    if len(next(iter(others.values()))):
        found.add(others)
    return found


def items_at(items: Items, places: Mapping[str, np.ndarray]) -> dict[str, Values]:
    """Take the scores of the items at `places`."""
    return {task: items[task][found] for task, found in places.items()}
