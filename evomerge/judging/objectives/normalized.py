"""Each task in units of the best parent's score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.judging.objectives import objective
from evomerge.judging.objectives.mean import mean


@objective
def normalized(
    means: NDArray[np.float64], weights: NDArray[np.float64], parents: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The weighted mean of task scores over the best parent's: 1 is as good as all the experts.

    mₜ/bₜ with bₜ = maxₚ mₚₜ, written 1 + (mₜ − bₜ)/|bₜ| so that it also holds for metrics below
    zero (losses, signed). A task at which every parent scores 0 counts by its plain score: 1 + mₜ.
    The parents' own sampling error does not enter the intervals.
    """
    best = parents.max(axis=0)
    return mean(1 + (means - best) / np.where(best == 0, 1.0, np.abs(best)), weights)
