"""Crossover and mutation of genomes, real-coded; discrete genes exchange and redraw their levels.

`discrete` is the mask of `Domain.discrete`, shape (dimension,). Genomes may stand one below the
other, shape (n, dimension): each is varied on its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.search.spaces.genes import Genome

Mask = NDArray[np.bool_]


def sbx(a: Genome, b: Genome, discrete: Mask, rng: np.random.Generator, eta: float) -> Genome:
    """One child by simulated binary crossover (Deb & Agrawal 1995), clipped to the unit cube.

    Each gene crosses with probability 1/2, else stays a's; `eta`: the larger, the nearer to the
    parents.
    """
    u, side, crosses = rng.random((3, *a.shape))
    spread = np.where(u < 0.5, 2 * u, 1 / (2 * (1 - u))) ** (1 / (eta + 1))
    spread = np.where(side < 0.5, spread, -spread)
    child = 0.5 * ((1 + spread) * a + (1 - spread) * b)
    child = np.where(discrete, b, np.clip(child, 0.0, 1.0))
    return np.where(crosses < 0.5, child, a)


def mutate(x: Genome, discrete: Mask, rng: np.random.Generator, eta: float, rate: float) -> Genome:
    """Polynomial mutation within bounds (Deb & Deb 2014) of each gene at `rate`, of one at least.

    A discrete gene is drawn anew; `eta`: the larger, the smaller the steps.
    """
    u, fresh, chance = rng.random((3, *x.shape))
    chosen = chance < rate
    one = np.arange(x.shape[-1]) == rng.integers(x.shape[-1], size=x.shape[:-1])[..., None]
    chosen |= one & ~chosen.any(axis=-1, keepdims=True)
    power = eta + 1
    down = (2 * u + (1 - 2 * u) * (1 - x) ** power) ** (1 / power) - 1
    up = 1 - (2 * (1 - u) + (2 * u - 1) * x**power) ** (1 / power)
    moved = np.clip(x + np.where(u < 0.5, down, up), 0.0, 1.0)
    return np.where(chosen, np.where(discrete, fresh, moved), x)


def reflect(x: Genome) -> Genome:
    """What lies outside the unit cube, mirrored at its walls."""
    folded = np.mod(x, 2.0)
    return np.where(folded > 1.0, 2.0 - folded, folded)
