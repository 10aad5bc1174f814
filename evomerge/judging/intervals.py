"""Intervals of scores, and what those of tasks and of objectives are made of.

Tasks are fixed and documents are the sample: each task has an interval of its own, whose ends are
functions of a z-score, and the objective combines them. Where the objective is linear in the tasks'
means nothing is drawn at random; elsewhere draws come from a fixed seed: the same scores give the
same interval. Scores of a whole corpus (`CorpusValues`) have their intervals by resampling
documents: see `judging.resampling`. Leads of one recipe over another are in `paired_tests`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from statistics import NormalDist

import numpy as np

from evomerge.judging.corpus_values import CorpusValues, is_corpus
from evomerge.judging.resampling import Resampled
from evomerge.judging.scores import Judge, Values

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""The z-score of an interval's upper end; the lower end's is −Z."""
DRAWS = 4_000
"""Draws of the tasks' means where the objective is not linear in them."""
STEEPEST = 8.0
"""The largest z-score told apart: no p-value is below 1e-15."""
_REACH = 3.0
"""An objective is linear if it is so within this many z-scores of every mean."""
TIE = 1e-9
"""Values closer than this differ by rounding alone."""

Ends = Callable[[Values], Values]
"""z-scores → where a task's interval ends: below its mean for negative ones, above for positive."""


@dataclass(frozen=True)
class Interval:
    """A value and its interval at `CONFIDENCE`."""

    value: float
    low: float
    high: float


def interval(judge: Judge, items: Mapping[str, Values]) -> Interval:
    """Give the objective of a recipe's items with its interval.

    Tasks' intervals (`mean_end`) are combined by `square_and_add`. Where the objective is not
    linear in the means, they are drawn together: the ends are quantiles of the objective.

    Args:
        judge: of the split that the items belong to.
        items: task → scores, shape (items,).
    """
    values = [np.asanyarray(items[task], dtype=np.float64) for task in judge.tasks]
    means, value = np.array([v.mean() for v in values]), judge.value_of(items)
    ends = [mean_ends(v) for v in values]
    slopes = slopes_around(judge.value, means, ends)
    if slopes is not None:
        return Interval(value, *linear_interval(value, means, slopes, ends, Z))
    scores = normal_scores(len(ends), 0)
    draws = np.stack([end(z) for end, z in zip(ends, scores, strict=True)], axis=-1)
    return Interval(value, *quantiles(judge.value(draws), value))


# One task


def mean_ends(values: Values) -> Ends:
    """Give the ends of the interval of a task's score, as a function of z-scores."""
    return _resampled_ends(values) if is_corpus(values) else partial(mean_end, values)


def _resampled_ends(values: CorpusValues) -> Ends:
    """Quantiles of the score of resampled documents: the expanded percentile interval.

    z grows to √(n/(n − 1)) t, without which the interval of few documents is too narrow (Hesterberg
    2015, section 3.3).
    """
    n, drawn = len(values), Resampled.of(values)
    grown = math.sqrt(n / max(1, n - 1))
    return lambda z: drawn.end(grown * t_scores(n, z))


def mean_end(values: Values, z: Values) -> Values:
    """Give the ends of the interval of a task's mean, by z-score.

    Wilson's interval where items are right or wrong. Other items in [0, 1] have it with as many
    items as would be as certain if they were right or wrong, at least as many as there are, and
    Student's t in the place of z. Their variance counts one right-or-wrong item more, so that items
    that all agree do not pass for certain. Items of another range have Student's interval, see
    `student`.

    Args:
        values: scores, shape (items,).
        z: z-scores, any shape.
    """
    n, mean = len(values), values.mean()
    if is_binary(values):
        return wilson(mean, n, z)
    if not 0 <= values.min() <= values.max() <= 1:
        return student(mean, values, span_of(values), z)
    centre = (n * mean + Z**2 / 2) / (n + Z**2)
    variance = (n * values.var() + centre * (1 - centre)) / (n + 1)
    return wilson(mean, n * max(1.0, mean * (1 - mean) / variance), t_scores(n, z))


def wilson(mean: Values | float, n: Values | float, z: Values) -> Values:
    """Give the end of Wilson's score interval of a share (Wilson 1927) at z; below the mean at −z.

    All arguments broadcast; `n` need not be whole.
    """
    width = z * np.sqrt(mean * (1 - mean) / n + (z / (2 * n)) ** 2)
    return np.clip((mean + z**2 / (2 * n) + width) / (1 + z**2 / n), 0, 1)


def student(mean: float, values: Values, span: float, z: Values) -> Values:
    """Give the ends of Student's interval of a mean, by z-score, with one item more.

    It lies half a span away from the mean: so neither items that all agree nor differences that are
    all 0 have an interval of no width.

    Args:
        mean: of the values.
        values: of the items, shape (items,).
        span: the range of scores.
        z: z-scores, any shape.
    """
    n = len(values)
    squares = np.square(values - mean).sum() + (span / 2) ** 2
    return mean + t_scores(n, z) * math.sqrt(squares / max(1, n - 1) / n)


def t_scores(n: int, z: Values) -> Values:
    """Give the quantiles of Student's t, n − 1 degrees of freedom, where a normal one's are z."""
    from evomerge.judging.special_functions import ndtr, stdtrit

    return -np.sign(z) * stdtrit(max(1, n - 1), ndtr(-np.abs(z)))


def span_of(scores: Values) -> float:
    """Return the range of scores; their size where it is 0."""
    return float(np.ptp(scores) or np.abs(scores).max())


def is_binary(scores: Values) -> bool:
    """Return True if all items are right (1) or wrong (0)."""
    return bool(np.isin(scores, (0, 1)).all())


# Several tasks


def square_and_add(value: Values | float, deviations: Values) -> tuple[Values, Values]:
    """Combine tasks' intervals to that of a linear objective (MOVER; Zou & Donner 2008).

    An end is as far from the value as the root of the sum of squares of what each task alone would
    move it by.

    Args:
        value: of the objective.
        deviations: slope · (end − mean) of each task at −z and z, shape (2, ..., tasks).

    Returns:
        The lower and the upper end.
    """
    low = np.minimum(deviations.min(axis=0), 0)
    high = np.maximum(deviations.max(axis=0), 0)
    return (
        value - np.sqrt(np.square(low).sum(axis=-1)),
        value + np.sqrt(np.square(high).sum(axis=-1)),
    )


def linear_interval(
    value: float, means: Values, slopes: Values, ends: Sequence[Ends], z: float
) -> tuple[float, float]:
    """Give the interval at z of an objective with these slopes by tasks' means, and their ends."""
    reached = np.array([end(np.array([-z, z])) for end in ends]).T
    low, high = square_and_add(value, slopes * (reached - means))
    return float(low), float(high)


def slopes_around(
    function: Callable[[Values], Values], means: Values, ends: Sequence[Ends]
) -> Values | None:
    """Return the slopes of a function of task means; None where it is not linear around them.

    Args:
        function: (..., tasks) → (...).
        means: shape (tasks,).
        ends: of each mean.
    """
    # 1. the slopes, each over `_REACH` z-scores
    reached = np.array([end(np.array([-_REACH, _REACH])) for end in ends])
    reach = np.abs(reached - means[:, None]).max(axis=1)
    steps = np.diag(reach)
    slopes = (function(means + steps) - function(means - steps)) / (2 * reach)
    slopes[np.abs(slopes) * reach <= TIE * np.abs(slopes * reach).max()] = 0.0
    # 2. what they predict at points around the means, against the function there
    around = reach * np.random.default_rng(0).uniform(-1, 1, (64, len(means)))
    around = np.concatenate([around, steps, -steps])
    found, expected = function(means + around), function(means) + around @ slopes
    linear = np.allclose(found, expected, rtol=TIE, atol=TIE)
    return slopes if linear else None


# Objectives that are not linear


@lru_cache(maxsize=64)
def normal_scores(count: int, place: int) -> Values:
    """Give normal scores, evenly spread, in an order of chance that is always the same.

    Args:
        count: rows.
        place: of the task, each of which has an order of its own.

    Returns:
        shape (count, DRAWS)
    """
    from evomerge.judging.special_functions import ndtri

    scores = np.tile(ndtri((np.arange(DRAWS) + 0.5) / DRAWS), (count, 1))
    return np.random.default_rng([count, place]).permuted(scores, axis=1)


def quantiles(draws: Values, observed: float) -> tuple[float, float]:
    """Give the interval between quantiles of draws, widened to what was observed."""
    tail = (1 - CONFIDENCE) / 2
    low = float(np.quantile(draws, tail, method="lower"))
    high = float(np.quantile(draws, 1 - tail, method="higher"))
    return min(low, observed), max(high, observed)
