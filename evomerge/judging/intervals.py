"""Bootstrap intervals, paired tests over items, and the correction for many of them.

Items are resampled within each task, because tasks are fixed and documents are the sample. All
draws come from a fixed seed: the same scores give the same interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from evomerge.judging.scores import Judge, Values

RESAMPLES = 10_000
CONFIDENCE = 0.95
_TIE = 1e-6
_KEPT = 1 << 23
"""Draws of up to this many entries (32 MB) are kept: every row of a table needs the same ones."""


@dataclass(frozen=True)
class Interval:
    """A value and its percentile bootstrap interval at `CONFIDENCE`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A minus B on identical items.

    Attributes:
        difference: of the objective.
        low: end of its percentile bootstrap interval at `CONFIDENCE`.
        high: the other end.
        p: two-sided p-value of no difference.
        test: the test that gave it, `mcnemar` or `permutation`.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str


def interval(judge: Judge, items: Mapping[str, Values]) -> Interval:
    """Give the objective of a recipe's items with its percentile bootstrap interval."""
    values = [items[task][:, None] for task in judge.tasks]
    low, high = _percentiles(judge.value(_resampled(values)[:, 0]))
    return Interval(judge.value_of(items), low, high)


def compare(judge: Judge, ours: Mapping[str, Values], theirs: Mapping[str, Values]) -> Comparison:
    """Compare two recipes on the same items.

    Under the null hypothesis of the p-value the two scores of an item may change places. Where all
    items are right or wrong and weigh the same, that is McNemar's test, and it is exact; elsewhere
    places are changed at random.

    Args:
        judge: of the split that the items belong to.
        ours: task → scores of A, shape (items,).
        theirs: task → scores of B on the same items, in the same order.
    """
    pairs = [np.stack([ours[task], theirs[task]], axis=-1) for task in judge.tasks]
    # the interval: both recipes' items are resampled jointly
    means = _resampled(pairs)
    low, high = _percentiles(judge.value(means[:, 0]) - judge.value(means[:, 1]))
    observed = judge.value_of(ours) - judge.value_of(theirs)
    # the p-value: exact where it can be had, by permutation elsewhere
    p, test = _mcnemar(judge, pairs), "mcnemar"
    if p is None:
        p, test = _permutation(judge, pairs, observed), "permutation"
    return Comparison(observed, low, high, p, test)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, by Holm's step-down procedure (Holm 1979).

    Calling those below α different errs anywhere in the family with a chance of at most α,
    however the tests depend on each other.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.array(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted.tolist()


def _mcnemar(judge: Judge, pairs: Sequence[Values]) -> float | None:
    """The exact McNemar test (McNemar 1947), two-sided; None where the objective is not its count.

    Of the items that only one of two equal recipes has right, each is as likely one's as the
    other's: the number won is binomial with chance 1/2.
    """
    from scipy.stats import binomtest  # half a second, which only commands that compare shall pay

    # 1. the tasks that make up the objective, and how much one item of each moves it
    signs = np.broadcast_to(judge.signs, len(pairs))
    scored = [
        (pair, sign, weight / len(pair))
        for pair, sign, weight in zip(pairs, signs, judge.weights, strict=True)
        if weight > 0
    ]
    influence = [each for _, _, each in scored]
    # 2. the difference is a count of items if all move it alike and are right or wrong
    alike = max(influence) <= min(influence) * (1 + 1e-9)
    if len(scored) > 1 and not (alike and judge.objective.name == "mean"):
        return None
    if not all(np.isin(pair, (0, 1)).all() for pair, _, _ in scored):
        return None
    # 3. items won and lost, of which ties say nothing
    gains = np.concatenate([sign * (pair[:, 0] - pair[:, 1]) for pair, sign, _ in scored])
    won, lost = int((gains > 0).sum()), int((gains < 0).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _permutation(judge: Judge, pairs: Sequence[Values], observed: float) -> float:
    """The p-value of a paired permutation test: differences of items change their signs.

    (extreme + 1) / (`RESAMPLES` + 1), where the observed assignment counts as one draw.
    """
    swapped = _swapped(pairs)
    null = judge.value(swapped[:, 0]) - judge.value(swapped[:, 1])
    extreme = np.sum(np.abs(null) >= abs(observed) - _TIE)
    return float((extreme + 1) / (RESAMPLES + 1))


def _resampled(tasks: Sequence[Values]) -> Values:
    """Means over resampled items: arrays (items, k) → (RESAMPLES, k, tasks)."""
    means = [_draws("counts", len(v), i, v) / len(v) for i, v in enumerate(tasks)]
    return np.stack(means, axis=-1)


def _swapped(pairs: Sequence[Values]) -> Values:
    """Means after random swaps within items: arrays (items, 2) → (RESAMPLES, 2, tasks)."""
    swapped = []
    for index, pair in enumerate(pairs):
        half = (pair[:, :1] - pair[:, 1:]) / 2
        moved = _draws("signs", len(pair), index, half) / len(pair)
        swapped.append(pair.mean() + moved * np.array([1.0, -1.0]))
    return np.stack(swapped, axis=-1)


def _draws(kind: str, n: int, task: int, values: Values) -> Values:
    """Multiply (RESAMPLES, n) random weights with values (n, k): the same weights at every call.

    Each task has draws of its own, so that items at equal places in two tasks are not tied.
    """
    if RESAMPLES * n <= _KEPT:
        return _kept(kind, n, task, RESAMPLES) @ values
    return np.concatenate([block @ values for block in draws(kind, n, task, RESAMPLES)])


@lru_cache(maxsize=32)
def _kept(kind: str, n: int, task: int, rows: int) -> NDArray[np.float32]:
    return next(draws(kind, n, task, rows))


def draws(kind: str, n: int, task: int, rows: int) -> Iterator[NDArray[np.float32]]:
    """Yield `rows` draws of random weights in blocks of shape (some, n), equal at every call.

    Args:
        kind: `counts`, how often each item is drawn with replacement, or `signs`, ±1.
        n: items of the task.
        task: its place among the tasks, which seeds its draws.
        rows: draws in all.
    """
    rng = np.random.default_rng([n, task])
    size = max(1, _KEPT // n)
    for start in range(0, rows, size):
        yield _weights(kind, min(size, rows - start), n, rng)


def _weights(kind: str, rows: int, n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Counts of each item among n draws, or a sign for each, shape (rows, n)."""
    if kind == "signs":
        return rng.integers(0, 2, size=(rows, n), dtype=np.int8).astype(np.float32) * 2 - 1
    # row r counts its items in the bins r·n … r·n + n − 1 of one long count
    drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float32)


def _percentiles(values: Values) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
