"""How sure we are: bootstrap intervals and paired tests over items.

Items are resampled within each task, because tasks are fixed and documents are the sample. All
draws come from a fixed seed: the same scores give the same interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """A minus B on identical items: difference, interval, two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p: float


def interval(judge: Judge, items: Mapping[str, Values]) -> Interval:
    """The objective's percentile bootstrap interval."""
    values = [items[task][:, None] for task in judge.tasks]
    low, high = _percentiles(judge.value(_resampled(values)[:, 0]))
    return Interval(judge.value_of(items), low, high)


def compare(judge: Judge, ours: Mapping[str, Values], theirs: Mapping[str, Values]) -> Comparison:
    """Compare two recipes on the same items.

    The interval resamples items jointly. The p-value is a permutation test: under the null
    hypothesis the two scores of an item may change places (sign-flip of paired differences).
    """
    pairs = [np.stack([ours[task], theirs[task]], axis=-1) for task in judge.tasks]
    means = _resampled(pairs)
    low, high = _percentiles(judge.value(means[:, 0]) - judge.value(means[:, 1]))
    observed = judge.value_of(ours) - judge.value_of(theirs)
    swapped = _swapped(pairs)
    null = judge.value(swapped[:, 0]) - judge.value(swapped[:, 1])
    extreme = np.sum(np.abs(null) >= abs(observed) - _TIE)
    return Comparison(observed, low, high, float((extreme + 1) / (RESAMPLES + 1)))


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
        return _kept(kind, n, task) @ values
    rows = max(1, _KEPT // n)
    rng = np.random.default_rng([n, task])
    sizes = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    return np.concatenate([_weights(kind, size, n, rng) @ values for size in sizes])


@lru_cache(maxsize=32)
def _kept(kind: str, n: int, task: int) -> NDArray[np.float32]:
    return _weights(kind, RESAMPLES, n, np.random.default_rng([n, task]))


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
