"""The weakest task."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.judging.objectives import objective


@objective
def weakest_link(
    means: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    temperature: Annotated[float, Field(ge=0)] = 0.0,
) -> NDArray[np.float64]:
    """The score of the worst task, minₜ mₜ. Use it where no task may fall behind.

    With a temperature it is softer, −T log Σ wₜ exp(−mₜ/T) / Σ wₜ: every task counts a little.

    Args:
        temperature: T, in units of the metric. The soft form tends to the minimum as T → 0 and to
            the weighted mean as T → ∞. Raise it to 0.05 where the minimum is too coarse to climb.
    """
    scored = means[..., weights > 0]
    lowest = scored.min(axis=-1)
    if temperature == 0:
        return lowest
    shares = weights[weights > 0] / weights.sum()
    # relative to the lowest, so that no exponential overflows
    excess = np.exp(-(scored - lowest[..., None]) / temperature)
    return lowest - temperature * np.log(excess @ shares)
