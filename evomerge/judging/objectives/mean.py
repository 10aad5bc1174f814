"""The weighted mean over tasks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.judging.objectives import objective


@objective
def mean(means: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weighted mean of the tasks' scores, Σ wₜ mₜ / Σ wₜ, whatever their numbers of items."""
    return means @ weights / weights.sum()
