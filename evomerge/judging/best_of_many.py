"""Correction of the winner's score for having been the best of many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.judging.constraints import Items
from evomerge.judging.scores import Judge, Values

RESAMPLES = 2000
_BLOCK = 1 << 23
"""Entries of the draws that are held at a time (32 MB)."""


def expected_on_new_items(judge: Judge, candidates: Sequence[Items]) -> float | None:
    """Estimate the score on new items of the best of some candidates, chosen by these items.

    Bootstrap bias correction (Tsamardinos, Greasidou & Borboudakis 2018, BBC-CV): items are drawn
    with replacement, within each task; the candidate that is best on those drawn is scored on those
    that were not, and the mean is taken over `RESAMPLES` draws. So the whole choice is repeated on
    items that had no part in it, and candidates share items as they do in fact. As fewer distinct
    items choose than did in fact, the estimate errs, if at all, towards less.

    Args:
        judge: of the split on which they were chosen, by value alone.
        candidates: items of each, the same tasks and items; of equals the earlier is chosen.

    Returns:
        The mean, or None where a task has a single item, so that no draw leaves any.
    """
    # 1. every candidate's task means over the items drawn, and over those left
    drawn, left = [], []
    for place, task in enumerate(judge.tasks):
        values = np.stack([items[task] for items in candidates], axis=1)
        inside, outside = _means(values, place)
        drawn.append(inside)
        left.append(outside)
    # 2. in every draw the best on the items drawn, scored on the items left
    chosen = judge.value(np.stack(drawn, axis=-1)).argmax(axis=1)
    scored = np.take_along_axis(np.stack(left, axis=-1), chosen[:, None, None], axis=1)[:, 0]
    # 3. the mean over draws that left items of every task
    known = np.isfinite(scored).all(axis=1)
    return float(judge.value(scored[known]).mean()) if known.any() else None


def _means(values: Values, task: int) -> tuple[Values, Values]:
    """Means over the items drawn and over those left, shape (RESAMPLES, candidates) each.

    `values` has shape (items, candidates). NaN where every item was drawn.
    """
    inside, outside = [], []
    for counts in _draws(len(values), task):
        unseen = (counts == 0).astype(np.float32)
        number = unseen.sum(axis=1, keepdims=True)
        inside.append(counts @ values / len(values))
        outside.append(np.where(number > 0, unseen @ values / np.maximum(number, 1), np.nan))
    return np.concatenate(inside), np.concatenate(outside)


def _draws(n: int, task: int) -> Iterator[NDArray[np.float32]]:
    """Yield how often each of n items is drawn, in blocks of shape (some, n), equal at every call.

    A task's place seeds its draws, so that items at equal places in two tasks are not tied.
    """
    rng = np.random.default_rng([n, task])
    size = max(1, _BLOCK // n)
    for start in range(0, RESAMPLES, size):
        rows = min(size, RESAMPLES - start)
        # row r counts its items in the bins r·n … r·n + n − 1 of one long count
        drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float32)
