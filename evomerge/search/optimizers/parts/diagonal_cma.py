"""CatCMA with margin whose covariance is diagonal: O(n) for a trial of n genes instead of O(n³).

cmaes has a diagonal CMA-ES (`SepCMA`) and one for whole numbers and choices (`CatCMAwM`), but none
that is both. What the Gaussian part does differs here; integers, choices and margins are cmaes'
own. The private attributes and methods of `CatCMAwM` that are used stand in this file and in
`mixed_cma`, which names the version that they were read in.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from cmaes import CatCMAwM
from numpy.typing import NDArray
from typing_extensions import override

Floats = NDArray[np.float64]


class DiagonalCatCMAwM(CatCMAwM):
    """CatCMA with margin with the Gaussian update of sep-CMA-ES (Ros & Hansen 2008)."""

    _sigma: float
    _mean: Floats
    _pc: Floats
    _p_sigma: Floats

    def __init__(self, mean: Floats, sigma: float, variances: Floats, **options: Any) -> None:
        """Begin a distribution.

        Args:
            mean: of the Gaussian variables, shape (n,).
            sigma: step size.
            variances: of the variables at step size 1, shape (n,).
            options: as of `CatCMAwM`.
        """
        super().__init__(mean=mean, sigma=sigma, cov=_with_diagonal(variances), **options)
        # the learning rate of variances, (n + 2)/3 times that of a full matrix; never above 1
        n, mu = self._Nmi, self._mu_eff
        full = 2 / mu / (n + math.sqrt(2)) ** 2
        full += (1 - 1 / mu) * min(1.0, (2 * mu - 1) / ((n + 2) ** 2 + mu))
        self._cmu = min(1 - self._c1, (n + 2) / 3 * full)

    @property
    @override
    def _C(self) -> Floats:
        """A view of shape (n, n) of which the diagonal counts, and is all that cmaes looks at."""
        return _with_diagonal(self._variances)

    @_C.setter
    @override
    def _C(self, covariance: Floats) -> None:
        self._variances = np.diag(covariance).copy()

    @override
    def _eigen_decomposition(self) -> tuple[Floats, Floats]:
        return np.broadcast_to(1.0, (self._Nmi, self._Nmi)), np.sqrt(self._variances)

    @override
    def _sample_from_gaussian(self) -> Floats:
        drawn = np.sqrt(self._variances) * self._rng.randn(self._Nmi)
        return np.asarray(self._mean + self._sigma * self._A * drawn)

    @override
    def _discretization(self, v_discrete: Floats) -> Floats:
        places = (self._z_lim < v_discrete[:, None]).sum(axis=1)
        return np.asarray(self._z_space[np.arange(len(places)), places])

    @override
    def _update_gaussian(self, sv: Floats) -> None:
        # 1. the samples as steps from the mean ~ N(0, C), the best first; their weighted sum
        steps = (sv - self._mean)[: self._mu] / (self._A * self._sigma)
        weights = self._weights[: self._mu]
        step = weights @ steps
        self._mean += self._cm * self._sigma * step
        # 2. the step size, by the length of its path
        path = self._c_sigma * (2 - self._c_sigma) * self._mu_eff
        self._p_sigma *= 1 - self._c_sigma
        self._p_sigma += math.sqrt(path) * step / np.sqrt(self._variances)
        length = float(np.linalg.norm(self._p_sigma))
        self._sigma *= math.exp((self._c_sigma / self._d_sigma) * (length / self._chi_n - 1))
        # 3. the path of the variances, which stalls while that of the step size is long
        known = math.sqrt(1 - (1 - self._c_sigma) ** (2 * (self._g + 1)))
        moves = float(length / known < (1.4 + 2 / (self._Nmi + 1)) * self._chi_n)
        cc = self._cc * (2 - self._cc)
        self._pc = (1 - self._cc) * self._pc + moves * math.sqrt(cc * self._mu_eff) * step
        # 4. the variances: what they were, the path (rank one), and the steps (rank μ)
        kept = 1 + self._c1 * (1 - moves) * cc - self._c1 - self._cmu
        self._variances = (
            kept * self._variances + self._c1 * self._pc**2 + self._cmu * (weights @ steps**2)
        )
        least = math.sqrt(self._min_eigenvalue / math.sqrt(self._variances.min()))
        self._sigma = max(self._sigma, least)


def _with_diagonal(values: Floats) -> Floats:
    """Show n numbers as a matrix of shape (n, n) that has them as its diagonal, without a copy."""
    return np.broadcast_to(values[:, None], (len(values), len(values)))
