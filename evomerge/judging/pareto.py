"""Fronts: which points no other point beats, and where a front bends."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def front_mask(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points no other dominates: no less in every objective, more in one.

    Args:
        points: shape (n, objectives), larger is better.

    Returns:
        shape (n,); equal points stand or fall together.
    """
    mask = np.ones(len(points), dtype=bool)
    for i, point in enumerate(points):
        no_worse = (points[mask] >= point).all(axis=1)
        better = (points[mask] > point).any(axis=1)
        mask[i] = not (no_worse & better).any()
    return mask


def knee_scores(front: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each point of a front bulges beyond the plane through the front's extremes.

    Objectives are scaled to [0, 1] over the front. With two objectives this is the distance to the
    line between the two ends (Das 1999's normal-boundary knee); with more, to the plane Σ fᵢ = 1
    through the ideal extremes.

    Args:
        front: shape (n, objectives), larger is better.

    Returns:
        shape (n,); the knee has the largest.
    """
    low, high = front.min(axis=0), front.max(axis=0)
    scaled = (front - low) / np.where(high > low, high - low, 1.0)
    return (scaled.sum(axis=1) - 1) / np.sqrt(front.shape[1])
