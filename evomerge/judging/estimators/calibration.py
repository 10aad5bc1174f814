"""Calibration of estimates: how they compare with what was measured later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from statistics import NormalDist

LEVEL = 0.9
"""Confidence level of the intervals that are checked."""
TOLERATED = 0.75
"""An estimator whose intervals cover less of the truth than this is switched off."""
RISK = 0.01
"""The chance of switching off an estimator whose intervals cover `TOLERATED` of the truth."""


_BOUND = NormalDist().inv_cdf((1 + LEVEL) / 2)

Check = tuple[float, float, float]
"""An estimate, its standard error, and the full score."""


@dataclass(frozen=True)
class Counted:
    """Estimates on the lowest rung that were checked by full scores, counted.

    Attributes:
        of: how many were checked.
        covered: how many full scores lay within the estimate's interval at `LEVEL`.
    """

    of: int = 0
    covered: int = 0

    def plus(self, check: Check) -> Counted:
        """Count one more."""
        estimate, se, full = check
        inside = abs(estimate - full) <= _BOUND * se + 1e-12
        return Counted(self.of + 1, self.covered + inside)

    @property
    def off(self) -> bool:
        """True where coverage as low has a chance below `RISK` at `TOLERATED` (binomial tail)."""
        from evomerge.judging.special_functions import bdtr

        return self.of > 0 and bool(bdtr(self.covered, self.of, TOLERATED) < RISK)


@dataclass(frozen=True)
class Calibration(Counted):
    """Estimates on the lowest rung against the full scores of those that reached the top.

    Attributes:
        of: how many were checked.
        covered: how many full scores lay within the estimate's interval at `LEVEL`.
        error: the mean absolute difference; NaN where nothing was checked.
    """

    error: float = math.nan


def calibrate(checks: Sequence[Check]) -> Calibration:
    """Compare estimates with full scores."""
    found = reduce(Counted.plus, checks, Counted())
    gaps = [abs(estimate - full) for estimate, _, full in checks]
    error = sum(gaps) / len(gaps) if gaps else math.nan
    return Calibration(found.of, found.covered, error)


def switched_off_after(checks: Sequence[Check]) -> int | None:
    """Count the checks after which an estimator was found to be off; None while it is not."""
    found = Counted()
    for check in checks:
        found = found.plus(check)
        if found.off:
            return found.of
    return None
