"""Calibration of estimates: how they compare with what was measured later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.9
"""Confidence level of the intervals that are checked."""
TOLERATED = 0.75
"""An estimator whose intervals cover less of the truth than this is switched off."""
RISK = 0.01
"""The chance of switching off an estimator whose intervals cover `TOLERATED` of the truth."""


@dataclass(frozen=True)
class Calibration:
    """Estimates on the lowest rung against the full scores of those that reached the top.

    Attributes:
        of: how many were checked.
        covered: how many full scores lay within the estimate's interval at `LEVEL`.
        error: the mean absolute difference; NaN where nothing was checked.
    """

    of: int
    covered: int
    error: float

    @property
    def off(self) -> bool:
        """True where coverage as low has a chance below `RISK` at `TOLERATED` (binomial tail)."""
        ways = (
            math.comb(self.of, k) * TOLERATED**k * (1 - TOLERATED) ** (self.of - k)
            for k in range(self.covered + 1)
        )
        return self.of > 0 and sum(ways) < RISK


def calibrate(checks: Sequence[tuple[float, float, float]]) -> Calibration:
    """Compare (estimate, standard error, full score) triples."""
    bound = NormalDist().inv_cdf((1 + LEVEL) / 2)
    gaps = [abs(estimate - full) for estimate, _, full in checks]
    covered = [gap <= bound * se + 1e-12 for gap, (_, se, _) in zip(gaps, checks, strict=True)]
    error = sum(gaps) / len(gaps) if gaps else math.nan
    return Calibration(len(checks), sum(covered), error)


def switched_off_after(checks: Sequence[tuple[float, float, float]]) -> int | None:
    """Count the checks after which an estimator was found to be off; None while it is not."""
    counts = range(1, len(checks) + 1)
    return next((count for count in counts if calibrate(checks[:count]).off), None)
