"""Quadratic surfaces through measured task means (MAP, arXiv:2406.07529, §3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy  # its packages are imported when they are first used: they take .5 s
from numpy.typing import NDArray

from evomerge.search.spaces.genes import Genome

if TYPE_CHECKING:
    from sklearn.linear_model import BayesianRidge

SURE = 0.6
"""Chance that constraints hold above which they count as kept."""

Floats = NDArray[np.float64]
Surface = Callable[[Genome], Floats]
"""Genomes, shape (n, dimension) → predictions, shape (n,)."""


def terms(dimension: int, *, interactions: bool) -> int:
    """Count the coefficients of a quadratic of so many genes, the constant included."""
    return (dimension + 1) * (dimension + 2) // 2 if interactions else 2 * dimension + 1


def basis(genomes: Genome, *, interactions: bool) -> Floats:
    """Compute a quadratic's terms without the constant, (n, terms − 1); genes run from −1 to 1."""
    x = 2 * genomes - 1
    if not interactions:
        return np.hstack([x, x**2])
    first, second = np.triu_indices(x.shape[1])
    return np.hstack([x, x[:, first] * x[:, second]])


@dataclass(frozen=True)
class Quadratic:
    """One task's mean as a quadratic of the genes, inside a sigmoid where the mean is a share.

    Coefficients have a Gaussian prior, its width and the noise being what makes the results
    likeliest (MacKay 1992), so that fewer results than coefficients, and noisy ones, are borne.

    Attributes:
        ridge: the regression; of a share's logits.
        bounded: whether the mean is a share.
        interactions: whether products of genes are among the terms.
        misses: by how much each result's mean is missed by the surface through the others,
            squared, shape (n,).
    """

    ridge: BayesianRidge
    bounded: bool
    interactions: bool
    misses: Floats

    @staticmethod
    def fit(
        genomes: Genome, means: Floats, weights: Floats, *, share: int | None, interactions: bool
    ) -> Quadratic:
        """Fit means, shape (n,), weighted as by inverse variances; `share`: they are shares of so
        many items.

        The paper fits means by least squares; here a share's logits are fitted, weighted by
        p(1 − p) as those of binomial means are, which has one solution.
        """
        from sklearn.linear_model import BayesianRidge

        # 1. targets: a share's logits, weighted by p(1 − p); other means as they are
        bounded, targets = share is not None, means
        if share is not None:
            edge = 0.5 / (share + 1)
            shares = np.clip(means, edge, 1 - edge)
            targets, weights = scipy.special.logit(shares), weights * shares * (1 - shares)
        # 2. Bayesian ridge regression on the terms
        weights, x = weights / weights.mean(), basis(genomes, interactions=interactions)
        ridge = BayesianRidge().fit(x, targets, sample_weight=weights)
        # 3. leave-one-out errors in closed form: residual / (1 − leverage)
        missed = (targets - ridge.predict(x)) / (1 - _leverage(ridge, x, weights))
        without = _linked(targets - missed, bounded)
        return Quadratic(ridge, bounded, interactions, (means - without) ** 2)

    def __call__(self, genomes: Genome) -> Floats:
        """Return the expected surface at genomes, shape (n, dimension) → (n,)."""
        x = basis(genomes, interactions=self.interactions)
        return _linked(x @ self.ridge.coef_ + self.ridge.intercept_, self.bounded)

    def drawn(self, rng: np.random.Generator) -> Surface:
        """Draw a surface from the posterior (Thompson sampling)."""
        ridge, mean = self.ridge, self.ridge.coef_
        coefficients = mean + (rng.standard_normal((1, len(mean))) @ self._spread.T)[0]
        level = ridge.intercept_ + ridge.X_offset_ @ (mean - coefficients)

        def surface(genomes: Genome) -> Floats:
            x = basis(genomes, interactions=self.interactions)
            return _linked(x @ coefficients + level, self.bounded)

        return surface

    @cached_property
    def _spread(self) -> Floats:
        """A square root of the coefficients' posterior covariance, shape (terms, terms)."""
        values, vectors = np.linalg.eigh(self.ridge.sigma_)
        return np.asarray(vectors * np.sqrt(np.abs(values)))


def _leverage(ridge: BayesianRidge, x: Floats, weights: Floats) -> Floats:
    """Return each result's own weight in its prediction, shape (n,)."""
    centred = x - ridge.X_offset_
    own = np.einsum("ij,jk,ik->i", centred, ridge.sigma_, centred, optimize=True)
    return np.minimum(weights * (ridge.alpha_ * own + 1 / weights.sum()), 1 - 1e-6)


def _linked(found: Floats, bounded: bool) -> Floats:
    return np.asarray(scipy.special.expit(found) if bounded else found)


class Result(NamedTuple):
    """The result of one recipe.

    Attributes:
        point: the genes, shape (genes,).
        means: what surfaces are fitted to: each task's mean.
        items: the number of items of a mean.
        objectives: what is maximised.
        violation: by how much constraints are broken; 0 when they hold.
        se: the score's standard error.
    """

    point: Genome
    means: tuple[float, ...]
    items: int
    objectives: tuple[float, ...]
    violation: float
    se: float


@dataclass(frozen=True)
class Surfaces:
    """A quadratic for every task's mean, and one for the chance that constraints hold.

    Attributes:
        points: the results', shape (n, genes).
        tasks: one for each mean.
        holding: None where no result broke a constraint.
        misses: how far each result is off the surfaces through the others, squared, shape (n,); 1
            is as far as results are off their mean.
    """

    points: Genome
    tasks: Sequence[Quadratic]
    holding: Quadratic | None
    misses: Floats

    @staticmethod
    def fit(results: Sequence[Result], *, interactions: bool) -> Surfaces:
        """Fit results; one of a larger standard error, such as an estimate, weighs less."""
        points = np.stack([result.point for result in results])
        squares = np.array([result.se for result in results]) ** 2
        weights = 1 / (1 + squares / (np.median(squares) or squares.max() or 1.0))

        def through(values: Floats, share: int | None) -> Quadratic:
            return Quadratic.fit(points, values, weights, share=share, interactions=interactions)

        # 1. a surface for every task's mean, in a sigmoid where all means are shares
        tasks, missed = [], np.zeros(len(results))
        for means in np.array([result.means for result in results]).T:
            share = results[-1].items if means.min() >= 0 and means.max() <= 1 else None
            tasks.append(through(means, share))
            missed += tasks[-1].misses / (np.var(means) or 1.0)
        # 2. one for the chance that constraints hold, where any broke
        holds = np.array([float(result.violation <= 0) for result in results])
        holding = None if holds.all() else through(holds, 1)
        return Surfaces(points, tasks, holding, missed / len(tasks))

    def drawn(self, rng: np.random.Generator) -> list[Surface]:
        """Draw a surface of every task's mean (see `Quadratic.drawn`)."""
        return [task.drawn(rng) for task in self.tasks]

    def violations(self, points: Genome) -> Floats:
        """Compute by how much the chance that constraints hold falls short, (n, genes) → (n,)."""
        if self.holding is None:
            return np.zeros(len(points))
        return np.maximum(0.0, SURE - self.holding(points))
