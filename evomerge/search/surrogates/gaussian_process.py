"""A Gaussian process over results: predicts the scores of genomes not tried yet."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy  # its packages are imported when they are first used: they take .5 s

from evomerge.judging.scores import Scores
from evomerge.search.spaces.genes import Domain, Genome
from evomerge.search.surrogates.features import Features, Floats

if TYPE_CHECKING:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Kernel

FEWEST = 10
"""Successful results before anything is predicted."""
MOST = 150
"""A prediction rests on this many results, those nearest to the genomes asked about."""
LATEST = 2000
"""Results among which the nearest are looked for, the latest."""
REFIT = 10
"""Results between fits of the kernel; in long searches about a tenth of all."""
NUGGET = 1e-6
"""Added to the diagonal, so that the matrix is invertible where results coincide."""


class Result(NamedTuple):
    """The result of one genome.

    Attributes:
        point: the genome's features.
        goals: each larger is better; none for a failure.
        value: the objective's value; NaN for a failure.
        se: its standard error.
    """

    point: Floats
    goals: tuple[float, ...]
    value: float
    se: float


class Surrogate:
    """A Gaussian process over the results nearest to what is asked about.

    Goals enter by their ranks, as normal scores: what counts is who is better, and neither broken
    merges nor broken constraints (Deb's rule: they rank below every candidate that keeps them, by
    how much is broken) bend the rest. A failure stands in the middle: few by accident do no harm,
    and where all fail nothing better is promised. A score of a larger standard error than the
    others, such as an estimate from a rung, has so much more noise. What is predicted depends on
    the results so far, in their order, and on nothing else.

    Where gradients told of the loss (`LossSlopes`) and no gene has levels, the process runs through
    what is left of the scores beside the line that the loss predicts best.
    """

    def __init__(self, domain: Domain, *, all_goals: bool) -> None:
        """`all_goals`: predict each objective of several, and not the value alone."""
        self._features = Features(domain)
        # of genomes whose entries are the features
        self._loss = None if all_goals or domain.discrete.any() else domain.loss
        self._all_goals = all_goals
        self._results: list[Result] = []
        self._successes = 0
        self._kernels: tuple[int, Kernel | None] = (0, None)  # of so many results

    def learn(self, genome: Genome, scores: Scores | None) -> None:
        """Add a result; None for a failure."""
        point = self._features(genome)
        if scores is None or not np.isfinite(scores.objectives).all():
            self._results.append(Result(point, (), np.nan, 0.0))
            return
        goals = scores.objectives if self._all_goals else (scores.value,)
        if scores.violation > 0:
            goals = (scores.fitness,) * len(goals)
        self._results.append(Result(point, goals, scores.value, scores.se))
        self._successes += 1

    @property
    def ready(self) -> bool:
        """True once there are enough results to predict from."""
        return self._successes >= FEWEST

    def __call__(self, genomes: Sequence[Genome]) -> Floats:
        """Predict each genome's goals as normal scores among the results near them, (n, goals)."""
        # 1. the results nearest to any of the genomes, in the order of the record
        points = np.stack([self._features(genome) for genome in genomes])
        pool = self._results[-LATEST:]
        apart = scipy.spatial.distance.cdist(
            points, np.stack([result.point for result in pool])
        ).min(axis=0)
        nearest = np.sort(np.argsort(apart, kind="stable")[:MOST])
        # 2. a process through them with the kernel fitted last
        near = [pool[i] for i in nearest]
        trend = _Trend.fit(self._loss, near)
        model = _regression(self._kernel(), near, fit=False, trend=trend)
        return np.asarray(model.predict(points)).reshape(len(points), -1) + trend(points)[:, None]

    def _kernel(self) -> Kernel:
        """Return the kernel of largest likelihood for the latest results, fitted now and then."""
        count = len(self._results)
        turn = count - count % max(REFIT, 1 << count.bit_length() - 4)
        if self._kernels[0] != turn:
            model = _regression(
                _prior(self._results[0].point), self._results[:turn][-MOST:], fit=True
            )
            self._kernels = turn, model.kernel_
        return self._kernels[1]


@dataclass(frozen=True)
class _Trend:
    """What a loss predicts of the normal scores: a line, falling as the loss rises.

    Attributes:
        loss: points (n, coordinates) → (n,); None predicts 0.
        level: at a loss of 0.
        fall: for each unit of the loss.
    """

    loss: Callable[[Floats], Floats] | None
    level: float = 0.0
    fall: float = 0.0

    @staticmethod
    def fit(loss: Callable[[Floats], Floats] | None, results: Sequence[Result]) -> _Trend:
        """Fit the line by least squares to the results that did not fail."""
        known = np.array([bool(result.goals) for result in results])
        if loss is None or known.sum() < FEWEST:
            return _Trend(None)
        losses = loss(np.stack([result.point for result in results])[known])
        scores = _normal_scores(results)[known, 0]
        away = losses - losses.mean()
        fall = max(0.0, -float(away @ scores) / max(float(away @ away), 1e-12))
        return _Trend(loss, float(scores.mean() + fall * losses.mean()), fall)

    def __call__(self, points: Floats) -> Floats:
        """Predict the normal scores of points, (n,)."""
        if self.loss is None:
            return np.zeros(len(points))
        return np.asarray(self.level - self.fall * self.loss(points))


def _prior(point: Floats) -> Kernel:
    """Make a Matérn-5/2 kernel and noise; lengths in units of the cube's diagonal."""
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    diagonal = np.sqrt(max(1, point.size))
    smooth = Matern(0.5 * diagonal, (0.05 * diagonal, 20.0 * diagonal), nu=2.5)
    return ConstantKernel(1.0, (1e-2, 1e2)) * smooth + WhiteKernel(0.1, (1e-3, 2.0))


def _regression(
    kernel: Kernel, results: Sequence[Result], *, fit: bool, trend: _Trend | None = None
) -> GaussianProcessRegressor:
    """Make the process through the results, or through what a trend leaves of them; its kernel as
    it is or fitted to them.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor

    optimizer = "fmin_l_bfgs_b" if fit else None
    model = GaussianProcessRegressor(kernel, alpha=_excess_noise(results), optimizer=optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a bound is as good a value as any
        points, scores = np.stack([result.point for result in results]), _normal_scores(results)
        if trend is not None and trend.loss is not None:
            scores = scores - trend(points)[:, None]
        return model.fit(points, scores)


def _normal_scores(results: Sequence[Result]) -> Floats:
    """Turn each goal's ranks into quantiles of N(0, 1), shape (n, goals); ties share theirs."""
    known = np.array([bool(result.goals) for result in results])
    goals = np.array([result.goals for result in results if result.goals])
    if not known.any():
        return np.zeros((len(results), 1))
    scores = np.zeros((len(results), goals.shape[1]))
    ranks = scipy.stats.rankdata(goals, axis=0)
    scores[known] = scipy.special.ndtri((ranks - 0.5) / len(goals))
    return scores


def _excess_noise(results: Sequence[Result]) -> Floats:
    """Compute each score's extra variance over the surest one's, in units of the scores' spread."""
    squares = np.array([result.se for result in results]) ** 2
    values = np.array([result.value for result in results])
    known = np.isfinite(values)
    if not known.any():
        return np.full(len(results), NUGGET)
    low, high = np.quantile(values[known], [0.25, 0.75])
    spread = max((high - low) / 1.349, 1e-12)
    excess = np.where(known, squares - squares[known].min(), 0.0) / spread**2
    return NUGGET + np.clip(excess, 0.0, 100.0)
