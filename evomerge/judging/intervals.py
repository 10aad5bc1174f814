"""How sure we are: bootstrap intervals and paired tests over items.

Items are resampled within each task, because tasks are fixed and documents are the sample. All
draws come from a fixed seed: the same scores give the same interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.judging.scores import Judge, Values

RESAMPLES = 10_000
CONFIDENCE = 0.95
_BLOCK = 1 << 22


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
    means = np.stack([_resampled(items[task]) for task in judge.tasks], axis=-1)
    low, high = _percentiles(judge.value(means))
    return Interval(judge.scores(items).value, low, high)


def compare(judge: Judge, ours: Mapping[str, Values], theirs: Mapping[str, Values]) -> Comparison:
    """Compare two recipes on the same items.

    The interval resamples items jointly. The p-value is a permutation test: under the null
    hypothesis the two scores of an item may change places (sign-flip of paired differences).
    """
    pairs = [np.stack([ours[task], theirs[task]], axis=-1) for task in judge.tasks]
    means = np.stack([_resampled(pair) for pair in pairs], axis=-1)  # (resamples, 2, tasks)
    differences = judge.value(means[:, 0]) - judge.value(means[:, 1])
    low, high = _percentiles(differences)
    observed = judge.scores(ours).value - judge.scores(theirs).value
    swapped = np.stack([_swapped(pair) for pair in pairs], axis=-1)
    null = judge.value(swapped[:, 0]) - judge.value(swapped[:, 1])
    extreme = np.sum(np.abs(null) >= abs(observed) - 1e-12)
    return Comparison(observed, low, high, float((extreme + 1) / (RESAMPLES + 1)))


def _resampled(values: Values) -> Values:
    """Means over resampled items: (n, ...) → (RESAMPLES, ...)."""
    rng = np.random.default_rng(0)
    n = len(values)
    rows = max(1, _BLOCK // max(1, values.size))
    parts = [
        values[rng.integers(n, size=(min(rows, RESAMPLES - start), n))].mean(axis=1)
        for start in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(parts)


def _swapped(pair: Values) -> Values:
    """Means after random swaps within items: (n, 2) → (RESAMPLES, 2)."""
    rng = np.random.default_rng(0)
    centre, half = pair.mean(axis=1), (pair[:, 0] - pair[:, 1]) / 2
    rows = max(1, _BLOCK // max(1, pair.size))
    flips = np.concatenate(
        [
            rng.choice([-1.0, 1.0], size=(min(rows, RESAMPLES - start), len(half))) @ half
            for start in range(0, RESAMPLES, rows)
        ]
    ) / len(half)
    return np.stack([centre.mean() + flips, centre.mean() - flips], axis=-1)


def _percentiles(values: Values) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
