"""Frank-Wolfe steps on a genome: towards the expert that a gradient favours, group by group.

FW-Merging (Chen et al. 2025, arXiv:2503.12649) does it in weights. Where merges are sums of task
vectors the inner products are the same in genes, which are few: ⟨∂L/∂θ, τₑ⟩ = ∂L/∂wₑ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.recipe import MergeCoefficient

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Vertices:
    """The points between which a Frank-Wolfe descent moves.

    Attributes:
        points: genomes, (vertices, dimension): each model alone, the base first.
        blocks: indices of the genes that move together, one for each group of tensors; genes in
            none stay where they are.
    """

    points: Floats
    blocks: Sequence[NDArray[np.int64]]


def minimizer(genome: Floats, gradient: Floats, vertices: Vertices) -> Floats:
    """Return the genome at which the linear model of the loss is least (Jaggi 2013, algorithm 1).

    s = argmin ⟨g, s⟩ over the vertices, in each block by itself: of a product of hulls the
    minimizer is that of each. A block stays where it is if every vertex is uphill, which can only
    be where it lies outside their hull.

    Args:
        genome: x, (dimension,).
        gradient: g = dL/dx, (dimension,).
        vertices: of the hulls.
    """
    found = genome.copy()
    for block in vertices.blocks:
        rises = (vertices.points[:, block] - genome[block]) @ gradient[block]
        best = int(np.argmin(rises))
        if rises[best] < 0:
            found[block] = vertices.points[best, block]
    return found


def gains(derivatives: Mapping[MergeCoefficient, float]) -> dict[str, float]:
    """Return by how much a loss falls, to first order, for each unit by which an expert's weights
    are raised: −Σ ∂L/∂w over tensor groups, which for task arithmetic is −⟨∂L/∂θ, τ⟩.

    By the greatest gain Frank-Wolfe selects an expert for a whole model (arXiv:2503.12649): what is
    taken off each inner product, ⟨∂L/∂θ, θ − θ₀⟩, is the same for all.

    Args:
        derivatives: coefficient → dL/dc.

    Returns:
        expert → gain, the greatest first; of equals, by name.
    """
    found: dict[str, list[float]] = {}
    for key, value in derivatives.items():
        if key.expert is not None and key.parameter == "weight":
            found.setdefault(key.expert, []).append(-value)
    sums = {expert: math.fsum(values) for expert, values in sorted(found.items())}
    return dict(sorted(sums.items(), key=lambda one: -one[1]))


def sizes(experts: int, count: int) -> list[int]:
    """Return at most `count` sizes of sets of experts, evenly from 1 to all but one."""
    if experts < 2 or count < 1:
        return []
    found = np.linspace(1, experts - 1, min(count, experts - 1)).round().astype(int)
    return [int(size) for size in found]


def step_size(step: int, rate: float) -> float:
    """Return γₜ = η · 2 / (t + 2), the share of the way that step `step`, from 0, goes."""
    return rate * 2 / (step + 2)


def stepped(genome: Floats, gradient: Floats, vertices: Vertices, step: int, rate: float) -> Floats:
    """Make a step: x + γₜ (s − x), which never leaves the bounds."""
    towards = minimizer(genome, gradient, vertices) - genome
    return np.clip(genome + step_size(step, rate) * towards, 0.0, 1.0)
