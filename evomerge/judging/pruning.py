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


def beaten_by(judge: Judge, ours: Items, others: Items, confidence: float) -> NDArray[np.bool_]:
    """Tell which of the others beat a candidate in every goal, each with `confidence`.

    A one-sided paired test of the difference on identical items, normal, its variance by the delta
    method: with f the goal and y an item's two scores, Σ_t Var(∂f/∂m_t y − ∂f′/∂m_t y′) / n_t.

    Args:
        ours: task → scores, shape (items,), none missing.
        others: task → scores on the same items, shape (others, items).
        confidence: between .5 (the better mean wins) and 1.

    Returns:
        shape (others,)
    """
    # 1. task means and the goals' derivatives there: (tasks,), (others, tasks), (…, goals, tasks)
    means, rivals = (
        np.stack([items[task].mean(axis=-1) for task in judge.tasks], axis=-1)
        for items in (ours, others)
    )
    slopes, rival_slopes = judge.slopes(means), judge.slopes(rivals)
    # 2. the variance of each goal's difference, shape (others, goals)
    variance = np.zeros((len(rivals), len(slopes)))
    for place, task in enumerate(judge.tasks):
        if (n := len(ours[task])) > 1:
            theirs = rival_slopes[:, :, [place]] * others[task][:, None]
            difference = theirs - slopes[:, [place]] * ours[task]
            variance += difference.var(axis=-1, ddof=1) / n
    # 3. beaten where every goal's difference exceeds its bound
    bound = NormalDist().inv_cdf(confidence)
    margin = judge.objectives_of(rivals) - judge.objectives_of(means) - bound * np.sqrt(variance)
    return np.all(margin > TIE, axis=-1)


def is_pruned(judge: Judge, ours: Items, incumbents: Items, keep: float, confidence: float) -> bool:
    """Prune a candidate when at least ⌈keep·n⌉ of n earlier candidates beat it.

    Each by the one-sided paired test of `beaten_by`. Without earlier candidates it is promoted: so
    the first to reach a rung always is, and some candidate is measured on all items.
    """
    count = len(next(iter(incumbents.values())))
    if not count:
        return False
    return int(beaten_by(judge, ours, incumbents, confidence).sum()) >= math.ceil(keep * count)


def items_at(items: Items, places: Mapping[str, np.ndarray]) -> dict[str, Values]:
    """Take the scores of the items at `places`."""
    return {task: items[task][found] for task, found in places.items()}
