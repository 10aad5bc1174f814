"""A loss as its gradients told it: a quadratic of each gene, through what descents saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RIDGE = 0.05
"""Added to a gene's squared deviations, in shares of its range: what hardly moved tells little of
its curvature."""


@dataclass(frozen=True)
class LossSlopes:
    """A loss whose slope in each gene is a line through the gradients that descents saw.

    Gradients of mini-batches are observations of a slope; their mean and their regression on where
    they were seen give, to second order and gene by gene,
    L(x) ≈ Σ ḡᵢ (xᵢ − x̄ᵢ) + ½ hᵢ (xᵢ − x̄ᵢ)², up to a constant.

    Attributes:
        centre: x̄, the mean of the genomes, (dimension,).
        slope: ḡ, the mean of the gradients, (dimension,).
        curvature: h, at least 0, (dimension,).
    """

    centre: Floats
    slope: Floats
    curvature: Floats

    @staticmethod
    def fit(count: int, sums: Sequence[Sequence[float]]) -> LossSlopes:
        """Fit it to sums over `count` steps: Σ x, Σ g, Σ x g and Σ x², each (dimension,)."""
        x, g, xg, xx = (np.array(one) for one in sums)
        centre, slope = x / count, g / count
        # the regression of g on x, with a ridge: h = Σ (x − x̄)(g − ḡ) / (Σ (x − x̄)² + ridge)
        together, alone = xg - count * centre * slope, xx - count * centre**2
        curvature = np.maximum(together / (np.maximum(alone, 0.0) + RIDGE), 0.0)
        return LossSlopes(centre, slope, curvature)

    def __call__(self, genomes: Floats) -> Floats:
        """Return the loss at genomes, (n, dimension), up to a constant, (n,)."""
        away = genomes - self.centre
        return np.asarray(away @ self.slope + 0.5 * away**2 @ self.curvature)
