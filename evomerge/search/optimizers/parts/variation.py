"""Crossover and mutation of genomes; discrete genes exchange and redraw their levels.

`sbx` and `polynomial_mutation` are NSGA-II's; `cross` and `gaussian_mutation`, which recombine as
the domain does, the archive optimizers'. `discrete` is the mask of `Domain.discrete`, shape
(dimension,). Genomes may stand one below the other, shape (n, dimension): each is varied alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.search.spaces.genes import Domain, Genome

Mask = NDArray[np.bool_]

SPREAD = 0.2
"""Standard deviation, in genes, of first candidates around what a population is seeded with."""


def sbx(a: Genome, b: Genome, discrete: Mask, rng: np.random.Generator, eta: float) -> Genome:
    """Make one child by simulated binary crossover (Deb & Agrawal 1995), clipped to the unit cube.

    Each gene crosses with probability 1/2, else stays a's; `eta`: the larger, the nearer to the
    parents.
    """
    u, side, crosses = rng.random((3, *a.shape))
    # 1. the spread β, distributed so that children lie about the parents as in one-point crossover
    spread = np.where(u < 0.5, 2 * u, 1 / (2 * (1 - u))) ** (1 / (eta + 1))
    # 2. one of the two children that lie β apart, by chance
    spread = np.where(side < 0.5, spread, -spread)
    child = 0.5 * ((1 + spread) * a + (1 - spread) * b)
    # 3. discrete genes are exchanged whole
    child = np.where(discrete, b, np.clip(child, 0.0, 1.0))
    return np.where(crosses < 0.5, child, a)


def polynomial_mutation(
    x: Genome, discrete: Mask, rng: np.random.Generator, eta: float, rate: float
) -> Genome:
    """Mutate each gene at `rate`, and one at least, polynomially within bounds (Deb & Deb 2014).

    A discrete gene is drawn anew; `eta`: the larger, the smaller the steps.
    """
    u, fresh, chance = rng.random((3, *x.shape))
    # 1. the genes that change: by chance, or one drawn where chance took none
    chosen = chance < rate
    one = np.arange(x.shape[-1]) == rng.integers(x.shape[-1], size=x.shape[:-1])[..., None]
    chosen |= one & ~chosen.any(axis=-1, keepdims=True)
    # 2. a step down or up, in units of the way to the bound
    power = eta + 1
    down = (2 * u + (1 - 2 * u) * (1 - x) ** power) ** (1 / power) - 1
    up = 1 - (2 * (1 - u) + (2 * u - 1) * x**power) ** (1 / power)
    moved = np.clip(x + np.where(u < 0.5, down, up), 0.0, 1.0)
    return np.where(chosen, np.where(discrete, fresh, moved), x)


def reflect(x: Genome) -> Genome:
    """Mirror at the unit cube's walls what lies outside it."""
    folded = np.mod(x, 2.0)
    return np.where(folded > 1.0, 2.0 - folded, folded)


def openings(domain: Domain) -> tuple[Genome, ...]:
    """Collect what an archive is seeded with: the domain's starts, its seeds, its initial point."""
    found: dict[bytes, Genome] = {}
    for genome in (*domain.starts, *domain.seeds.values(), domain.initial):
        found.setdefault(genome.tobytes(), genome)
    return tuple(found.values())


def cross(
    domain: Domain, a: Genome, b: Genome, rng: np.random.Generator, *, split: bool = True
) -> Genome:
    """Recombine two genomes: weight ~ U(0, 1), split at one of the domain's cuts, or nowhere."""
    cuts = domain.cuts
    at = int(cuts[int(rng.integers(len(cuts)))]) if split else domain.dimension
    return domain.recombine(a, b, at, float(rng.random()))


def gaussian_mutation(
    domain: Domain, genome: Genome, rng: np.random.Generator, sigma: float
) -> Genome:
    """Add N(0, σ²) to every continuous gene, clipped to [0, 1]; draw a discrete one anew with
    probability σ, because a small step would rarely leave its cell.
    """
    if sigma <= 0:
        return genome
    moved = np.clip(genome + rng.normal(0, sigma, domain.dimension), 0, 1)
    redrawn = np.where(rng.random(domain.dimension) < sigma, rng.random(domain.dimension), genome)
    return np.where(domain.discrete, redrawn, moved)
