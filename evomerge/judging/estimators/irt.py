"""Item response theory: difficulties of items and abilities of models, from their responses.

The multidimensional two-parameter logistic model, as MERGE3 uses it (Mencattini et al. 2025,
arXiv:2502.10436; Polo et al. 2024, tinyBenchmarks): the chance that model m solves item i is
P = σ(αᵢ·θₘ − βᵢ). All parameters have normal priors and are found together by their joint mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from evomerge.judging.constraints import Values

SPREAD_ALPHA, SPREAD_BETA, SPREAD_THETA = 0.5, 1.5, 1.0
"""Standard deviations of the priors, which have mean 0 but for the first α's, whose is 1."""
ITERATIONS = 100


@dataclass(frozen=True)
class ItemModel:
    """Items' parameters, fitted to the responses of some models.

    Attributes:
        alpha: discriminations, shape (items, dimensions).
        beta: difficulties, shape (items,).
        theta: the fitted models' abilities, shape (models, dimensions).
    """

    alpha: Values
    beta: Values
    theta: Values

    def chances(self, theta: Values) -> Values:
        """Give P of every item for one ability θ, shape (dimensions,) → (items,)."""
        return expit(self.alpha @ theta - self.beta)

    def ability(self, responses: Values) -> tuple[Values, Values]:
        """Estimate a new model's ability from some of its responses, with its error's covariance.

        Args:
            responses: shape (items,), in [0, 1], NaN where not measured.

        Returns:
            The posterior mode θ, shape (dimensions,), and the inverse of the Hessian there. The
            prior is the normal distribution of the fitted models' abilities.
        """
        # 1. the measured items, and the prior's mean μ and precision Λ
        seen = np.isfinite(responses)
        alpha, beta, answers = self.alpha[seen], self.beta[seen], responses[seen]
        center, precision = self._prior
        theta = center.copy()
        # 2. Newton's method on the log posterior, which is concave
        for _ in range(ITERATIONS):
            # gradient: Σᵢ αᵢ (yᵢ − Pᵢ) − Λ (θ − μ); −Hessian: Σᵢ Pᵢ (1 − Pᵢ) αᵢ αᵢᵀ + Λ
            p = expit(alpha @ theta - beta)
            gradient = alpha.T @ (answers - p) - precision @ (theta - center)
            hessian = (alpha * (p * (1 - p))[:, None]).T @ alpha + precision
            # no coordinate moves by more than 1: far from the mode whole steps overshoot
            step = np.linalg.solve(hessian, gradient)
            theta = theta + step / max(1.0, float(np.abs(step).max()))
            if np.abs(step).max() < 1e-10:
                break
        return theta, np.linalg.inv(hessian)

    @property
    def _prior(self) -> tuple[Values, Values]:
        """The fitted abilities' mean and precision, drawn towards the models' own prior."""
        count, dimensions = self.theta.shape
        center = self.theta.mean(axis=0)
        scatter = (self.theta - center).T @ (self.theta - center)
        covariance = (scatter + SPREAD_THETA**2 * np.eye(dimensions)) / (count + 1)
        return center, np.linalg.inv(covariance)


def fit(responses: Sequence[Values], dimensions: int) -> ItemModel:
    """Fit items and abilities to full responses, one array (items,) in [0, 1] for each model.

    The mode of the joint posterior by L-BFGS from a fixed start, so that equal responses give equal
    fits. Responses between 0 and 1 count as shares of a success. `dimensions`: of abilities, at
    most one more than there are models.

    Raises:
        ValueError: a response is not in [0, 1].
    """
    # 1. the responses as a table, shape (models, items)
    table = np.stack(responses)
    if not ((table >= 0) & (table <= 1)).all():
        raise ValueError("item response theory needs metrics between 0 and 1")
    models, items = table.shape
    # 2. all parameters in one flat vector: α, β, θ
    shapes = [(items, dimensions), (items,), (models, dimensions)]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])

    def parts(flat: Values) -> list[Values]:
        pieces = np.split(flat, ends[:-1])
        return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    prior = np.eye(1, dimensions)

    def loss(flat: Values) -> tuple[float, Values]:
        alpha, beta, theta = parts(flat)
        # −log likelihood: Σ log(1 + exp z) − y z with z = αᵢ·θₘ − βᵢ
        logits = theta @ alpha.T - beta
        error = expit(logits) - table
        nll = np.sum(np.logaddexp(0, logits) - table * logits)
        # −log prior, and the slopes of both
        a, b, t = (
            (alpha - prior) / SPREAD_ALPHA**2,
            beta / SPREAD_BETA**2,
            theta / SPREAD_THETA**2,
        )
        penalty = 0.5 * (np.sum(a * (alpha - prior)) + np.sum(b * beta) + np.sum(t * theta))
        slopes = [error.T @ theta + a, -error.sum(axis=0) + b, error @ alpha + t]
        return float(nll + penalty), np.concatenate([slope.ravel() for slope in slopes])

    # 3. the mode of the posterior
    found = minimize(
        loss,
        _start(table, dimensions),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": ITERATIONS},
    )
    return ItemModel(*parts(found.x))


def _start(table: Values, dimensions: int) -> Values:
    """Start values: difficulties and first abilities from means, the others from the residual."""
    # 1. the log odds of items' and models' mean responses
    share = np.clip(table.mean(axis=0), 0.05, 0.95)
    able = np.clip(table.mean(axis=1), 0.05, 0.95)
    logit = np.log(able / (1 - able))
    # 2. what an additive model leaves, and the directions in which models differ there
    residual = table - table.mean(axis=0) - (able - able.mean())[:, None]
    left, _, _ = np.linalg.svd(residual, full_matrices=False)
    # an SVD's signs are arbitrary: the largest entry of each vector is made positive
    largest = np.abs(left).argmax(axis=0)
    left = left * np.where(left[largest, range(left.shape[1])] < 0, -1, 1)
    theta = np.concatenate([(logit - logit.mean())[:, None], 0.1 * left], axis=1)[:, :dimensions]
    alpha = np.tile(np.append(1.0, np.full(dimensions - 1, 0.1)), (table.shape[1], 1))
    return np.concatenate([alpha.ravel(), -np.log(share / (1 - share)), theta.ravel()])
