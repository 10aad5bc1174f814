"""Intervals of scores, paired comparisons over items, and the correction for many of them.

Tasks are fixed and documents are the sample: each task has an interval of its own, whose ends are
functions of a z-score, and the objective combines them. The p-value of a paired comparison is twice
the tail at the z-score at which its interval reaches 0: so p < .05 where the 95 % interval leaves 0
out, and nowhere else. Where the objective is linear in the tasks' means nothing is drawn at random;
elsewhere draws come from a fixed seed: the same scores give the same interval.

Scores of a whole corpus (`CorpusValues`) have their intervals by resampling documents, and those of
differences by permuting them: see `judging.resampling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from statistics import NormalDist

import numpy as np

from evomerge.judging.corpus_values import CorpusValues, is_corpus
from evomerge.judging.resampling import CorpusPair, Resampled
from evomerge.judging.scores import Judge, Values

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""The z-score of an interval's upper end; the lower end's is −Z."""
DRAWS = 4_000
"""Draws of the tasks' means where the objective is not linear in them."""
_STEEPEST = 8.0
"""The largest z-score told apart: no p-value is below 1e-15."""
_REACH = 3.0
"""An objective is linear if it is so within this many z-scores of every mean."""
_TIE = 1e-9

Ends = Callable[[Values], Values]
"""z-scores → where a task's interval ends: below its mean for negative ones, above for positive."""


@dataclass(frozen=True)
class Interval:
    """A value and its interval at `CONFIDENCE`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A minus B on identical items.

    Attributes:
        difference: of the objective.
        low: end of its interval at `CONFIDENCE`.
        high: the other end.
        p: two-sided p-value of no difference; below 1 − `CONFIDENCE` where the interval leaves 0
            out.
        test: the name of the test: `mcnemar`, the mid-p test of one task with items right or wrong;
            `t`, of one task with other items; `permutation`, of one task with a corpus score;
            `combined`, of several tasks.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str


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
    ends = [_mean_ends(v) for v in values]
    slopes = _slopes(judge.value, means, ends)
    if slopes is not None:
        return Interval(value, *_linear_interval(value, means, slopes, ends, Z))
    scores = _normal_scores(len(ends), 0)
    draws = np.stack([end(z) for end, z in zip(ends, scores, strict=True)], axis=-1)
    return Interval(value, *_quantiles(judge.value(draws), value))


def compare(judge: Judge, ours: Mapping[str, Values], theirs: Mapping[str, Values]) -> Comparison:
    """Compare two recipes on the same items.

    The intervals of tasks' differences (`difference_end`) are combined as in `interval`, and p is
    found by inverting what results. Of one task with items right or wrong it is that of McNemar's
    mid-p test.

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
    slopes = _slopes(
        lambda both: judge.value(both[..., :count]) - judge.value(both[..., count:]),
        means,
        [_mean_ends(side) for side in sides],
    )
    if slopes is None or not np.allclose(slopes[:count], -slopes[count:]):
        # 2. elsewhere both recipes' means are drawn together, shape (DRAWS, 2, tasks)
        drawn = [_drawn_pair(pair, _normal_scores(3, place)) for place, pair in enumerate(pairs)]
        objectives = judge.value(np.stack(drawn, axis=-1))
        gaps = objectives[:, 0] - objectives[:, 1]
        return Comparison(value, *_quantiles(gaps, value), _tail(gaps, value), "combined")
    # 3. the interval, and the p-value by inverting it
    differences = (means[:count] - means[count:], slopes[:count])
    ends = [_difference_ends(pair) for pair in pairs]
    low, high = _linear_interval(value, *differences, ends, Z)
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


def _mean_ends(values: Values) -> Ends:
    return _resampled_ends(values) if is_corpus(values) else partial(mean_end, values)


def _difference_ends(pair: Values | CorpusPair) -> Ends:
    return pair.permuted.end if isinstance(pair, CorpusPair) else partial(difference_end, pair)


def _resampled_ends(values: CorpusValues) -> Ends:
    """Quantiles of the score of resampled documents: the expanded percentile interval.

    z grows to √(n/(n − 1)) t, without which the interval of few documents is too narrow (Hesterberg
    2015, section 3.3).
    """
    n, drawn = len(values), Resampled.of(values)
    grown = math.sqrt(n / max(1, n - 1))
    return lambda z: drawn.end(grown * _t_scores(n, z))


def _test_of(pair: Values | CorpusPair) -> str:
    if isinstance(pair, CorpusPair):
        return "permutation"
    return "mcnemar" if _is_binary(pair) else "t"


def mean_end(values: Values, z: Values) -> Values:
    """Give the ends of the interval of a task's mean, by z-score.

    Wilson's interval where items are right or wrong. Other items in [0, 1] have it with as many
    items as would be as certain if they were right or wrong, at least as many as there are, and
    Student's t in the place of z. Their variance counts one right-or-wrong item more, so that items
    that all agree do not pass for certain. Items of another range have Student's interval, see
    `_student`.

    Args:
        values: scores, shape (items,).
        z: z-scores, any shape.
    """
    n, mean = len(values), values.mean()
    if _is_binary(values):
        return wilson(mean, n, z)
    if not 0 <= values.min() <= values.max() <= 1:
        return _student(mean, values, _span(values), z)
    centre = (n * mean + Z**2 / 2) / (n + Z**2)
    variance = (n * values.var() + centre * (1 - centre)) / (n + 1)
    return wilson(mean, n * max(1.0, mean * (1 - mean) / variance), _t_scores(n, z))


def difference_end(pair: Values, z: Values) -> Values:
    """Give the ends of the interval of a task's mean difference A − B, by z-score.

    See `won_and_lost` for items that are right or wrong, `_student` for others.

    Args:
        pair: both scores of each item, shape (items, 2).
        z: z-scores, any shape.
    """
    gaps = pair[:, 0] - pair[:, 1]
    if _is_binary(pair):
        tabulated = won_and_lost(int((gaps > 0).sum()), int((gaps < 0).sum()), len(pair))
        return np.asarray(np.interp(z, *tabulated))
    return _student(gaps.mean(), gaps, _span(pair), z)


def wilson(mean: Values | float, n: Values | float, z: Values) -> Values:
    """Give the end of Wilson's score interval of a share (Wilson 1927) at z; below the mean at −z.

    All arguments broadcast; `n` need not be whole.
    """
    width = z * np.sqrt(mean * (1 - mean) / n + (z / (2 * n)) ** 2)
    return np.clip((mean + z**2 / (2 * n) + width) / (1 + z**2 / n), 0, 1)


@lru_cache(maxsize=1 << 12)
def won_and_lost(won: int, lost: int, n: int) -> tuple[Values, Values]:
    """Tabulate the ends of the interval of a difference of right-or-wrong items, by z-score.

    The difference is ψ(2θ − 1): of a share ψ of items only one recipe is right, and A is the one in
    a share θ of these. Its confidence distribution is that of independent ψ, by Wilson's score, and
    θ, by the mid-p of the binomial test: half the sum of Beta(won, lost + 1) and Beta(won + 1,
    lost). At a difference of 0 it is that of θ at ½ whatever ψ is, so that its tail there is the
    mid-p of McNemar's test (Fagerland, Lydersen & Laake 2013).

    Args:
        won: items that only A has right.
        lost: items that only B has right.
        n: items in all.

    Returns:
        z-scores, not decreasing, and the differences there, shape (points,) each.
    """
    from scipy.special import ndtr, ndtri  # a third of a second, for commands that compare

    # 1. ψ at z-scores from −4 to 4, with the chance of each
    nodes = np.linspace(-4, 4, 33)
    chances = np.diff(ndtr(np.concatenate([[-np.inf], (nodes[1:] + nodes[:-1]) / 2, [np.inf]])))
    share = (won + lost) / n
    shares = wilson(share, n, nodes)
    # 2. differences to tabulate: eight standard errors to either side of the one observed, and 0
    spread = math.sqrt(won + lost + 1) / n
    gaps = np.clip((won - lost) / n + spread * np.linspace(-8, 8, 81), -1, 1)
    gaps = np.unique(np.append(gaps, [-1.0, 0.0, 1.0]))
    # 3. F(gap) = ½ (F of Beta(won, lost + 1) + F of Beta(won + 1, lost)) at θ = (gap/ψ + 1)/2,
    #    the mean over ψ; a beta without a parameter is θ = 0 or θ = 1, where the gap is −ψ or ψ
    if won + lost:
        theta = np.clip((gaps[:, None] / shares + 1) / 2, 0, 1)
    at_least = 1 - ndtr(_wilson_score(share, n, np.maximum(-gaps, 0)))
    at_most = ndtr(_wilson_score(share, n, np.maximum(gaps, 0)))
    lower = _beta_below(won, lost + 1, theta) @ chances if won else np.where(gaps < 0, at_least, 1)
    upper = _beta_below(won + 1, lost, theta) @ chances if lost else np.where(gaps < 0, 0, at_most)
    chance = (lower + upper) / 2
    # 4. without an item won or lost, a difference of 0 has a chance of its own: F jumps there
    if not won + lost:
        place = int(np.searchsorted(gaps, 0))
        gaps, chance = np.insert(gaps, place, 0), np.insert(chance, place, 1 - chance[place])
    return np.clip(ndtri(chance), -_STEEPEST, _STEEPEST), gaps


def _wilson_score(mean: float, n: int, share: Values) -> Values:
    """The z-score at which Wilson's interval ends at `share`; 0 at 0 where the mean is 0 too."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = (share - mean) / np.sqrt(share * (1 - share) / n)
    return np.where(share == mean, 0.0, scores)


def _beta_below(a: float, b: float, theta: Values) -> Values:
    from scipy.special import betainc

    return np.asarray(betainc(a, b, theta))


def _student(mean: float, values: Values, span: float, z: Values) -> Values:
    """Student's interval of a mean, as if one more item lay half a span away from it.

    So neither items that all agree nor differences that are all 0 have an interval of no width.

    Args:
        mean: of the values.
        values: of the items, shape (items,).
        span: the range of scores.
        z: z-scores, any shape.
    """
    n = len(values)
    squares = np.square(values - mean).sum() + (span / 2) ** 2
    return mean + _t_scores(n, z) * math.sqrt(squares / max(1, n - 1) / n)


def _t_scores(n: int, z: Values) -> Values:
    """Quantiles of Student's t with n − 1 degrees of freedom where a normal one's are z."""
    from scipy.special import ndtr, stdtrit

    return -np.sign(z) * stdtrit(max(1, n - 1), ndtr(-np.abs(z)))


def _span(scores: Values) -> float:
    """The range of scores; their size where it is 0."""
    return float(np.ptp(scores) or np.abs(scores).max())


def _is_binary(scores: Values) -> bool:
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


def _linear_interval(
    value: float, means: Values, slopes: Values, ends: Sequence[Ends], z: float
) -> tuple[float, float]:
    """The interval at z of an objective with these slopes, of tasks with these means and ends."""
    reached = np.array([end(np.array([-z, z])) for end in ends]).T
    low, high = square_and_add(value, slopes * (reached - means))
    return float(low), float(high)


def _p_value(value: float, means: Values, slopes: Values, ends: Sequence[Ends]) -> float:
    """Twice the tail at the z-score at which the interval's end that is nearer to 0 reaches it."""
    from scipy.optimize import brentq

    if abs(value) <= _TIE:
        return 1.0

    def margin(z: float) -> float:
        low, high = _linear_interval(value, means, slopes, ends, z)
        return low if value > 0 else -high

    if margin(0.0) <= 0:
        return 1.0
    z = _STEEPEST if margin(_STEEPEST) > 0 else brentq(margin, 0.0, _STEEPEST, xtol=1e-12)
    return min(1.0, math.erfc(z / math.sqrt(2)))


def _slopes(
    function: Callable[[Values], Values], means: Values, ends: Sequence[Ends]
) -> Values | None:
    """The slopes of a function of task means; None where it is not linear around them.

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
    slopes[np.abs(slopes) * reach <= _TIE * np.abs(slopes * reach).max()] = 0.0
    # 2. what they predict at points around the means, against the function there
    around = reach * np.random.default_rng(0).uniform(-1, 1, (64, len(means)))
    around = np.concatenate([around, steps, -steps])
    found, expected = function(means + around), function(means) + around @ slopes
    linear = np.allclose(found, expected, rtol=_TIE, atol=_TIE)
    return slopes if linear else None


# Objectives that are not linear


def _drawn_pair(pair: Values | CorpusPair, z: Values) -> Values:
    """Draw both recipes' means of a task: normal scores, shape (3, DRAWS), → (DRAWS, 2)."""
    if isinstance(pair, CorpusPair):
        return pair.resampled(DRAWS)
    n, gaps, mean = len(pair), pair[:, 0] - pair[:, 1], pair.mean()
    if _is_binary(pair):
        # 1. the share of items that one recipe alone has right, A's of these, and of the others
        won, lost, both = int((gaps > 0).sum()), int((gaps < 0).sum()), int(pair.min(axis=1).sum())
        differing = wilson((won + lost) / n, n, z[0])
        ours = _drawn_share_won(won, lost, z[1])
        alike = max(1, n - won - lost)
        right = (1 - differing) * wilson(both / alike, alike, z[2])
        return np.stack([right + differing * ours, right + differing * (1 - ours)], axis=-1)
    # 2. other items: half the difference, and the middle with what of it follows the difference
    middles = pair.mean(axis=1)
    difference = difference_end(pair, z[0])
    slope = np.cov(middles, gaps)[0, 1] / gaps.var(ddof=1) if n > 1 and np.ptp(gaps) else 0.0
    rest = middles - mean - slope * (gaps - gaps.mean())
    middle = mean + slope * (difference - gaps.mean()) + _student(0.0, rest, _span(pair), z[1])
    return np.stack([middle + difference / 2, middle - difference / 2], axis=-1)


def _drawn_share_won(won: int, lost: int, z: Values) -> Values:
    """θ of `won_and_lost` at z-scores."""
    from scipy.special import ndtri

    theta = np.linspace(0, 1, 1001)
    lower = _beta_below(won, lost + 1, theta) if won else np.ones(len(theta))
    upper = _beta_below(won + 1, lost, theta) if lost else (theta == 1).astype(float)
    return np.interp(z, np.clip(ndtri((lower + upper) / 2), -_STEEPEST, _STEEPEST), theta)


@lru_cache(maxsize=64)
def _normal_scores(count: int, place: int) -> Values:
    """Evenly spread normal scores in an order of chance, shape (count, DRAWS), equal every time."""
    from scipy.special import ndtri

    scores = np.tile(ndtri((np.arange(DRAWS) + 0.5) / DRAWS), (count, 1))
    return np.random.default_rng([count, place]).permuted(scores, axis=1)


def _quantiles(draws: Values, observed: float) -> tuple[float, float]:
    """The interval between quantiles of draws, widened to what was observed."""
    tail = (1 - CONFIDENCE) / 2
    low = float(np.quantile(draws, tail, method="lower"))
    high = float(np.quantile(draws, 1 - tail, method="higher"))
    return min(low, observed), max(high, observed)


def _tail(draws: Values, observed: float) -> float:
    """Twice the share of draws that are not on the side of 0 on which the observed value is."""
    if abs(observed) <= _TIE:
        return 1.0
    return min(1.0, max(1, 2 * int((draws * np.sign(observed) <= 0).sum())) / len(draws))
