"""The weighted mean over tasks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.judging.objectives import objective


@objective
def mean(means: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ wₜ mₜ / Σ wₜ over tasks: every task counts by its weight, whatever its number of items."""
    return means @ weights / weights.sum()
