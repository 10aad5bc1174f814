"""Pareto dominance among points of which every objective is maximised, and constraints come first.

Objectives are float arrays of shape (n, m), larger is better; violations have shape (n,), 0 or less
where every constraint holds. Constraint domination (Deb et al. 2002, NSGA-II, def. 1): the smaller
violation dominates; at equal violations a point dominates another when it is nowhere worse and
somewhere better. Nothing here may be NaN: leave failures out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def front(objectives: ArrayLike, violation: ArrayLike | None = None) -> NDArray[np.bool_]:
    """Mark the points that no other dominates, shape (n,); equal points are in together.

    O(n · size of the front) after one sort, so that whole studies can be asked about.

    Raises:
        ValueError: shapes that do not fit, or NaN.
    """
    points, broken = _checked(objectives, violation)
    mask = np.zeros(len(points), dtype=bool)
    if not len(points):
        return mask
    # 1. the least violation dominates all others
    left = np.flatnonzero(broken == broken.min())
    # 2. in lexicographic order a point can be dominated only by one that comes before it
    left = left[np.lexsort(-points[left].T[::-1])]
    # 3. the first that is left is on the front, with its equals; what it dominates goes
    while left.size:
        leader = points[left[0]]
        mask[left[0]] = True
        better_somewhere = (points[left] > leader).any(axis=1)
        equal = (points[left] == leader).all(axis=1)
        mask[left[equal]] = True
        left = left[better_somewhere]
    return mask


def sort(objectives: ArrayLike, violation: ArrayLike | None = None) -> NDArray[np.int64]:
    """Rank points by non-dominated sorting, shape (n,): 0 is the front, 1 the front without it, …

    O(n²) memory: meant for populations.

    Raises:
        ValueError: shapes that do not fit, or NaN.
    """
    points, broken = _checked(objectives, violation)
    dominates = _domination(points, broken)
    dominators = dominates.sum(axis=0)
    ranks = np.full(len(points), -1, dtype=np.int64)
    rank = 0
    # whatever has no dominator left gets the rank; then it dominates nothing any more
    while (ranks < 0).any():
        now = (ranks < 0) & (dominators == 0)
        ranks[now] = rank
        dominators = dominators - dominates[now].sum(axis=0)
        rank += 1
    return ranks


def crowding(objectives: ArrayLike) -> Floats:
    """Give the crowding distance of the points of one front, shape (n,); infinite at the extremes.

    Deb et al. 2002, NSGA-II, §III-B.
    """
    points, _ = _checked(objectives, None)
    count, width = points.shape
    distance = np.zeros(count)
    for column in range(width):
        order = np.argsort(points[:, column], kind="stable")
        values = points[order, column]
        distance[order[[0, -1]]] = np.inf
        span = values[-1] - values[0]
        if span > 0:
            distance[order[1:-1]] += (values[2:] - values[:-2]) / span
    return distance


def knee_scores(front: Floats) -> Floats:
    """Measure how far each point of a front bulges beyond the plane through its extremes.

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


def hypervolume(objectives: ArrayLike, reference: ArrayLike) -> float:
    """Give the volume that up to three objectives dominate above `reference`, shape (m,).

    Raises:
        ValueError: more than three objectives, shapes that do not fit, or NaN.
    """
    points, _ = _checked(objectives, None)
    if points.shape[1] > 3:
        raise ValueError("hypervolume takes at most three objectives")
    gains = points - np.asarray(reference, dtype=np.float64)
    return _volume(gains[(gains > 0).all(axis=1)])


def _volume(gains: Floats) -> float:
    """Volume of the union of boxes [0, gain], shape (n, m), by slices along the last objective."""
    if not len(gains):
        return 0.0
    if gains.shape[1] == 1:
        return float(gains.max())
    gains = gains[np.argsort(-gains[:, -1], kind="stable")]
    depths = gains[:, -1] - np.append(gains[1:, -1], 0.0)
    return sum(
        float(depth) * _volume(gains[: i + 1, :-1]) for i, depth in enumerate(depths) if depth > 0
    )


def _domination(points: Floats, broken: Floats) -> NDArray[np.bool_]:
    """Mark where i dominates j, shape (n, n)."""
    no_worse = np.ones((len(points), len(points)), dtype=bool)
    better = np.zeros_like(no_worse)
    for column in points.T:
        no_worse &= column[:, None] >= column
        better |= column[:, None] > column
    less_broken = broken[:, None] < broken
    return less_broken | ((broken[:, None] == broken) & no_worse & better)


def _checked(objectives: ArrayLike, violation: ArrayLike | None) -> tuple[Floats, Floats]:
    points = np.asarray(objectives, dtype=np.float64)
    if points.ndim != 2:
        raise ValueError(f"objectives have shape {points.shape}; (points, objectives) is needed")
    broken = np.zeros(len(points)) if violation is None else np.asarray(violation, dtype=np.float64)
    if broken.shape != (len(points),):
        raise ValueError(f"{len(points)} points, but violations of shape {broken.shape}")
    if np.isnan(points).any() or np.isnan(broken).any():
        raise ValueError("objectives and violations must not be NaN; leave failures out")
    return points, np.maximum(broken, 0.0)
