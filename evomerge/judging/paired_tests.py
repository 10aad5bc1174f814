"""Paired tests: two recipes on identical items, interval and p-value from one procedure.

McNemar's test of one task with right and wrong items, Student's paired test of one with others, a
permutation test of one with a corpus score, their combination for the objective over several tasks,
and Holm's correction for many comparisons.
The p-value is twice the tail at the z-score at which the interval reaches 0: so p < .05 where the
95 % interval leaves 0 out, and nowhere else.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from evomerge.judging.corpus_values import is_corpus
from evomerge.judging.intervals import (
    DRAWS,
    STEEPEST,
    TIE,
    Ends,
    Z,
    is_binary,
    linear_interval,
    mean_ends,
    normal_scores,
    quantiles,
    slopes_around,
    span_of,
    student,
    t_scores,
    wilson,
)
from evomerge.judging.resampling import CorpusPair
from evomerge.judging.scores import Judge, Values

FINE = 1 << 44
"""Steps of z-scores from 0 to `STEEPEST` among which a p-value's is found."""


@dataclass(frozen=True)
class Comparison:
    """A minus B on identical items.

    Attributes:
        difference: of the objective.
        low: end of its interval at `CONFIDENCE`.
        high: the other end.
        p: two-sided p-value of no difference; below 1 − `CONFIDENCE` where the interval leaves 0
            out.
        test: the name of the test: `mcnemar`, of one task with items right or wrong; `t`, of one
            task with other items; `permutation`, of one task with a corpus score; `combined`, of
            several tasks.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str


def compare(judge: Judge, ours: Mapping[str, Values], theirs: Mapping[str, Values]) -> Comparison:
    """Compare two recipes on the same items.

    The intervals of tasks' differences (`difference_end`) are combined as those of `interval` are,
    and p is found by inverting what results. Of one task with items right or wrong it is
    2 P(θ < ½) of the share θ that the one ahead won of the items on which they differ, see
    `won_and_lost`.

    Args:
        judge: of the split that the items belong to.
        ours: task → scores of A, shape (items,).
        theirs: task → scores of B on the same items, in the same order.
    """
    sides = [recipe[task] for recipe in (ours, theirs) for task in judge.tasks]
    count, value = len(judge.tasks), judge.value_of(ours) - judge.value_of(theirs)
    pairs = [_pair(a, b) for a, b in zip(sides[:count], sides[count:], strict=True)]
    # 1. the objective's slopes by both recipes' means, where it is linear around both
    means = np.array([side.mean() for side in sides])
    slopes = slopes_around(
        lambda both: judge.value(both[..., :count]) - judge.value(both[..., count:]),
        means,
        [mean_ends(side) for side in sides],
    )
    if slopes is None or not np.allclose(slopes[:count], -slopes[count:]):
        # 2. elsewhere both recipes' means are drawn together, shape (DRAWS, 2, tasks)
        drawn = [_drawn_pair(pair, normal_scores(3, place)) for place, pair in enumerate(pairs)]
        objectives = judge.value(np.stack(drawn, axis=-1))
        gaps = objectives[:, 0] - objectives[:, 1]
        return Comparison(value, *quantiles(gaps, value), _tail(gaps, value), "combined")
    # 3. the interval, and the p-value by inverting it
    differences = (means[:count] - means[count:], slopes[:count])
    ends = [_difference_ends(pair) for pair in pairs]
    low, high = linear_interval(value, *differences, ends, Z)
    moving = [pair for pair, slope in zip(pairs, slopes[:count], strict=True) if slope]
    test = "combined" if len(moving) != 1 else _test_of(moving[0])
    return Comparison(value, low, high, _p_value(value, *differences, ends), test)


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


# One task


def _pair(ours: Values, theirs: Values) -> Values | CorpusPair:
    """Both scores of each item, shape (items, 2); of a corpus score, both recipes' parts."""
    if is_corpus(ours) and is_corpus(theirs):
        return CorpusPair.of(ours, theirs)
    return np.stack([np.asarray(ours), np.asarray(theirs)], axis=-1)


def _difference_ends(pair: Values | CorpusPair) -> Ends:
    return pair.permuted.end if isinstance(pair, CorpusPair) else partial(difference_end, pair)


def _test_of(pair: Values | CorpusPair) -> str:
    if isinstance(pair, CorpusPair):
        return "permutation"
    return "mcnemar" if is_binary(pair) else "t"


def difference_end(pair: Values, z: Values) -> Values:
    """Give the ends of the interval of a task's mean difference A − B, by z-score.

    See `won_and_lost` for items that are right or wrong, `student` for others.

    Args:
        pair: both scores of each item, shape (items, 2).
        z: z-scores, any shape.
    """
    gaps = pair[:, 0] - pair[:, 1]
    if is_binary(pair):
        tabulated = won_and_lost(int((gaps > 0).sum()), int((gaps < 0).sum()), len(pair))
        return np.asarray(np.interp(z, *tabulated))
    return student(gaps.mean(), gaps, span_of(pair), z)


@lru_cache(maxsize=1 << 12)
def won_and_lost(won: int, lost: int, n: int) -> tuple[Values, Values]:
    """Tabulate the ends of the interval of a difference of right-or-wrong items, by z-score.

    The difference is ψ(2θ − 1): of a share ψ of items only one recipe is right, and A is the one in
    a share θ of these. Its confidence distribution is that of independent ψ, by Wilson's score with
    Student's t in the place of z, and θ, by Jeffreys' interval (Brown, Cai & DasGupta 2001):
    Beta(won + ½, lost + ½). At a difference of 0 it is that of θ at ½ whatever ψ is, which is
    McNemar's test: it errs more nearly as often as it says than the test's mid-p, which hardly ever
    errs where few items differ.

    Args:
        won: items that only A has right.
        lost: items that only B has right.
        n: items in all.

    Returns:
        z-scores, not decreasing, and the differences there, shape (points,) each.
    """
    from evomerge.judging.special_functions import betainc, ndtr, ndtri

    # 1. ψ at z-scores from −4 to 4, with the chance of each
    nodes = np.linspace(-4, 4, 33)
    chances = np.diff(ndtr(np.concatenate([[-np.inf], (nodes[1:] + nodes[:-1]) / 2, [np.inf]])))
    shares = wilson((won + lost) / n, n, t_scores(n, nodes))
    # 2. differences to tabulate: eight standard errors to either side of the one observed, and 0
    spread = math.sqrt(won + lost + 1) / n
    gaps = np.clip((won - lost) / n + spread * np.linspace(-8, 8, 81), -1, 1)
    gaps = np.sort(np.append(gaps, [-1.0, 0.0, 1.0]))
    gaps = gaps[np.append(True, gaps[1:] != gaps[:-1])]  # np.unique imports numpy.ma
    # 3. F(gap) = F of θ at (gap/ψ + 1)/2, the mean over ψ; where ψ is 0, so is the difference
    with np.errstate(divide="ignore", invalid="ignore"):
        theta = np.where(shares > 0, gaps[:, None] / shares, np.sign(gaps)[:, None])
    chance = betainc(won + 0.5, lost + 0.5, np.clip((theta + 1) / 2, 0, 1)) @ chances
    return np.clip(ndtri(chance), -STEEPEST, STEEPEST), gaps


# Several tasks


def _p_value(value: float, means: Values, slopes: Values, ends: Sequence[Ends]) -> float:
    """Twice the tail at the z-score at which the interval's end that is nearer to 0 reaches it."""
    if abs(value) <= TIE:
        return 1.0

    def margin(z: float) -> float:
        low, high = linear_interval(value, means, slopes, ends, z)
        return low if value > 0 else -high

    if margin(0.0) <= 0:
        return 1.0
    # the larger z, the wider the interval: halve to the first step at which it reaches 0
    step = STEEPEST / FINE
    z = step * bisect_left(range(FINE), 1, key=lambda n: margin(step * n) <= 0)
    return min(1.0, math.erfc(z / math.sqrt(2)))


def _drawn_pair(pair: Values | CorpusPair, z: Values) -> Values:
    """Draw both recipes' means of a task: normal scores, shape (3, DRAWS), → (DRAWS, 2)."""
    if isinstance(pair, CorpusPair):
        return pair.resampled(DRAWS)
    from evomerge.judging.special_functions import betaincinv, ndtr

    n, gaps, mean = len(pair), pair[:, 0] - pair[:, 1], pair.mean()
    if is_binary(pair):
        # 1. the share of items that one recipe alone has right, A's of these, and of the others
        won, lost, both = int((gaps > 0).sum()), int((gaps < 0).sum()), int(pair.min(axis=1).sum())
        differing = wilson((won + lost) / n, n, t_scores(n, z[0]))
        ours = betaincinv(won + 0.5, lost + 0.5, ndtr(z[1]))
        alike = max(1, n - won - lost)
        right = (1 - differing) * wilson(both / alike, alike, z[2])
        return np.stack([right + differing * ours, right + differing * (1 - ours)], axis=-1)
    # 2. other items: half the difference, and the middle with what of it follows the difference
    middles = pair.mean(axis=1)
    difference = difference_end(pair, z[0])
    slope = np.cov(middles, gaps)[0, 1] / gaps.var(ddof=1) if n > 1 and np.ptp(gaps) else 0.0
    rest = middles - mean - slope * (gaps - gaps.mean())
    middle = mean + slope * (difference - gaps.mean()) + student(0.0, rest, span_of(pair), z[1])
    return np.stack([middle + difference / 2, middle - difference / 2], axis=-1)


def _tail(draws: Values, observed: float) -> float:
    """Twice the share of draws that are not on the side of 0 on which the observed value is."""
    if abs(observed) <= TIE:
        return 1.0
    return min(1.0, max(1, 2 * int((draws * np.sign(observed) <= 0).sum())) / len(draws))
