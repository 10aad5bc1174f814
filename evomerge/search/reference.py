"""Reference directions and niches, as NSGA-III keeps its members spread along a front."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def das_dennis(width: int, divisions: int) -> Floats:
    """Every point of the unit simplex with coordinates k/divisions, shape (n, width)
    (Das & Dennis 1998).
    """
    bars = combinations(range(divisions + width - 1), width - 1)
    edges = np.array([(-1, *bar, divisions + width - 1) for bar in bars])
    return (np.diff(edges, axis=1) - 1) / divisions


def directions(width: int, at_most: int) -> Floats:
    """The finest Das-Dennis directions of no more than `at_most` points, shape (n, width)."""
    divisions = 1
    while width > 1 and math.comb(divisions + width, width - 1) <= at_most:
        divisions += 1
    return das_dennis(width, divisions)


def normalise(losses: Floats, front: NDArray[np.bool_]) -> Floats:
    """Losses, shape (n, m), scaled so that the ideal is 0 and the front's intercepts are 1
    (Deb & Jain 2014, NSGA-III, §IV-C).

    Where the hyperplane through the extreme points is degenerate, the front's largest losses serve
    as intercepts.
    """
    shifted = losses - losses.min(axis=0)
    best = shifted[front]
    weights = np.where(np.eye(losses.shape[1], dtype=bool), 1.0, 1e6)
    extremes = best[[(best * row).max(axis=1).argmin() for row in weights]]
    intercepts = best.max(axis=0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        try:
            found = 1 / np.linalg.solve(extremes, np.ones(len(extremes)))
        except np.linalg.LinAlgError:
            found = np.full_like(intercepts, np.nan)
    if np.isfinite(found).all() and (found > 1e-9).all():
        intercepts = found
    return shifted / np.where(intercepts > 1e-12, intercepts, 1.0)


def associate(points: Floats, rays: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Each point's nearest ray from the origin and its distance from it, both of shape (n,)."""
    units = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    along = points @ units.T
    squares = (points**2).sum(axis=1)[:, None] - along**2
    nearest = squares.argmin(axis=1)
    return nearest, np.sqrt(np.maximum(squares[np.arange(len(points)), nearest], 0.0))
