"""Quadratic surfaces through measured means (MAP, arXiv:2406.07529, §3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from evomerge.search.spaces.genes import Genome

if TYPE_CHECKING:
    from sklearn.linear_model import BayesianRidge

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
            targets, weights = logit(shares), weights * shares * (1 - shares)
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
    return np.asarray(expit(found) if bounded else found)
