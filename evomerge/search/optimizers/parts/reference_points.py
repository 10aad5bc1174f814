"""NSGA-III's reference directions and niches, which spread members along a front."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]


def das_dennis(width: int, divisions: int) -> Floats:
    """Return every point of the unit simplex with coordinates k/divisions, shape (n, width)
    (Das & Dennis 1998).
    """
    bars = combinations(range(divisions + width - 1), width - 1)
    edges = np.array([(-1, *bar, divisions + width - 1) for bar in bars])
    return (np.diff(edges, axis=1) - 1) / divisions


def directions(width: int, at_most: int) -> Floats:
    """Return the finest Das-Dennis directions of at most `at_most` points, shape (n, width)."""
    divisions = 1
    while width > 1 and math.comb(divisions + width, width - 1) <= at_most:
        divisions += 1
    return das_dennis(width, divisions)


def normalise(losses: Floats, front: NDArray[np.bool_]) -> Floats:
    """Scale losses, shape (n, m), so that the ideal is 0 and the front's intercepts are 1
    (Deb & Jain 2014, NSGA-III, §IV-C).

    Where the hyperplane through the extreme points is degenerate, the front's largest losses serve
    as intercepts.
    """
    # 1. move the ideal point to the origin
    shifted = losses - losses.min(axis=0)
    best = shifted[front]
    # 2. the extreme point of each axis minimises the achievement scalarizing function (eq. 4)
    weights = np.where(np.eye(losses.shape[1], dtype=bool), 1.0, 1e6)
    extremes = best[[(best * row).max(axis=1).argmin() for row in weights]]
    # 3. the intercepts of the hyperplane through them; where there is none, the largest losses
    intercepts = best.max(axis=0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        try:
            found = 1 / np.linalg.solve(extremes, np.ones(len(extremes)))
        except np.linalg.LinAlgError:
            found = np.full_like(intercepts, np.nan)
    if np.isfinite(found).all() and (found > 1e-9).all():
        intercepts = found
    # 4. scale by the intercepts (eq. 5)
    return shifted / np.where(intercepts > 1e-12, intercepts, 1.0)


def associate(points: Floats, rays: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Find each point's nearest ray from the origin and its distance from it, both shape (n,)."""
    units = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    along = points @ units.T
    squares = (points**2).sum(axis=1)[:, None] - along**2
    nearest = squares.argmin(axis=1)
    return nearest, np.sqrt(np.maximum(squares[np.arange(len(points)), nearest], 0.0))


def survivors(losses: Floats, ranks: Ranks, count: int, rng: np.random.Generator) -> Ranks:
    """Select `count` of n points as NSGA-III does (Deb & Jain 2014, alg. 1 and 4).

    Whole fronts by rank, and of the last one members of the niches with the fewest: where a niche
    is empty the nearest to its direction, else any.

    Args:
        losses: shape (n, m).
        ranks: of non-dominated sorting, shape (n,).
        count: points to select.
        rng: decides between niches, and between members of a niche that is not empty.

    Returns:
        The indices of those that stay, shape (count,).
    """
    # 1. the last front that still has room, and each point's direction and distance from it
    last = np.sort(ranks)[count - 1]
    within = np.flatnonzero(ranks <= last)
    rays = directions(losses.shape[1], count)
    scaled = normalise(losses[within], ranks[within] == 0)
    found = dict(zip(within.tolist(), zip(*associate(scaled, rays), strict=True), strict=True))
    # 2. whole fronts stay; count their members by niche
    kept = np.flatnonzero(ranks < last).tolist()
    crowd = [0] * len(rays)
    for member in kept:
        crowd[found[member][0]] += 1
    # 3. the last front's members wait by niche
    waiting: dict[int, list[int]] = {}
    for member in np.flatnonzero(ranks == last).tolist():
        waiting.setdefault(int(found[member][0]), []).append(member)
    # 4. fill niches with the fewest members first: an empty one with the nearest, others at random
    while len(kept) < count:
        fewest = min(crowd[ray] for ray in waiting)
        rays_with_fewest = [ray for ray in waiting if crowd[ray] == fewest]
        ray = rays_with_fewest[int(rng.integers(len(rays_with_fewest)))]
        members = waiting[ray]
        nearest = min(range(len(members)), key=lambda place: found[members[place]][1])
        kept.append(members.pop(nearest if fewest == 0 else int(rng.integers(len(members)))))
        crowd[ray] += 1
        if not members:
            del waiting[ray]
    return np.array(kept, dtype=np.int64)
