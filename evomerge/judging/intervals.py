"""How sure we are: bootstrap intervals, paired tests over items, and many of them at once.

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
"""Draws of up to so many entries (32 MB) are kept: every row of a table needs the same ones."""


@dataclass(frozen=True)
class Interval:
    """A value and its percentile bootstrap interval at `CONFIDENCE`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A minus B on identical items: difference, interval, two-sided p-value of no difference.

    `test`: what gave the p-value, `mcnemar` or `permutation`.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str


def interval(judge: Judge, items: Mapping[str, Values]) -> Interval:
    """The objective's percentile bootstrap interval."""
    values = [items[task][:, None] for task in judge.tasks]
    low, high = _percentiles(judge.value(_resampled(values)[:, 0]))
    return Interval(judge.value_of(items), low, high)


def compare(judge: Judge, ours: Mapping[str, Values], theirs: Mapping[str, Values]) -> Comparison:
    """Compare two recipes on the same items.

    The interval resamples items jointly. Under the null hypothesis of the p-value the two scores of
    an item may change places. Where all items are right or wrong and weigh the same, that is
    McNemar's test, and it is exact; elsewhere places are changed at random.
    """
    pairs = [np.stack([ours[task], theirs[task]], axis=-1) for task in judge.tasks]
    means = _resampled(pairs)
    low, high = _percentiles(judge.value(means[:, 0]) - judge.value(means[:, 1]))
    observed = judge.value_of(ours) - judge.value_of(theirs)
    p, test = _mcnemar(judge, pairs), "mcnemar"
    if p is None:
        p, test = _permutation(judge, pairs, observed), "permutation"
    return Comparison(observed, low, high, p, test)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, by Holm's step-down procedure (Holm 1979).

    Whatever depends on what, calling those below α different errs anywhere in the family with a
    chance of at most α.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.array(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted.tolist()


def _mcnemar(judge: Judge, pairs: Sequence[Values]) -> float | None:
    """The exact McNemar test (McNemar 1947): of the items that one of the two has right, each is as
    likely one's as the other's. None where its count is not the objective's difference.
    """
    signs = np.broadcast_to(judge.signs, len(pairs))
    counted = [
        (pair, sign, weight / len(pair))
        for pair, sign, weight in zip(pairs, signs, judge.weights, strict=True)
        if weight > 0
    ]
    influence = [each for _, _, each in counted]
    alike = max(influence) <= min(influence) * (1 + 1e-9)
    if len(counted) > 1 and not (alike and judge.objective.name == "mean"):
        return None
    if not all(np.isin(pair, (0, 1)).all() for pair, _, _ in counted):
        return None
    gains = np.concatenate([sign * (pair[:, 0] - pair[:, 1]) for pair, sign, _ in counted])
    won, lost = int((gains > 0).sum()), int((gains < 0).sum())
    return min(1.0, 2 * _fair_tail(won + lost, min(won, lost)))


def _fair_tail(tosses: int, most: int) -> float:
    """The chance that a fair coin falls heads up at most so often, in whole numbers to the end."""
    ways = total = 1
    for heads in range(most):
        ways = ways * (tosses - heads) // (heads + 1)
        total += ways
    return total / 2**tosses


def _permutation(judge: Judge, pairs: Sequence[Values], observed: float) -> float:
    """A paired permutation test on the objective: differences of items change their signs."""
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
    """(RESAMPLES, n) random weights times values (n, k): the same weights at every call.

    Tasks draw apart, so that items which happen to stand at one place are not tied together.
    """
    if RESAMPLES * n <= _KEPT:
        return _kept(kind, n, task, RESAMPLES) @ values
    return np.concatenate([block @ values for block in draws(kind, n, task, RESAMPLES)])


@lru_cache(maxsize=32)
def _kept(kind: str, n: int, task: int, rows: int) -> NDArray[np.float32]:
    return next(draws(kind, n, task, rows))


def draws(kind: str, n: int, task: int, rows: int) -> Iterator[NDArray[np.float32]]:
    """Random weights of n items, `rows` draws in blocks of shape (some, n), equal at every call.

    `kind`: `counts`, how often each item is drawn, or `signs`; `task`: its place, for draws of its
    own.
    """
    rng = np.random.default_rng([n, task])
    size = max(1, _KEPT // n)
    for start in range(0, rows, size):
        yield _weights(kind, min(size, rows - start), n, rng)


def _weights(kind: str, rows: int, n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """How often each item is drawn in each row, or a sign for each."""
    if kind == "signs":
        return rng.integers(0, 2, size=(rows, n), dtype=np.int8).astype(np.float32) * 2 - 1
    drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float32)


def _percentiles(values: Values) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
