"""Children in genes: recombination at a random cut, and mutation. Shared by archive optimizers."""

from __future__ import annotations

import numpy as np

from evomerge.search.spaces.genes import Domain, Genome


def openings(domain: Domain) -> tuple[Genome, ...]:
    """What an archive is seeded with: the domain's starts, its seeds, its initial point."""
    found: dict[bytes, Genome] = {}
    for genome in (*domain.starts, *domain.seeds.values(), domain.initial):
        found.setdefault(genome.tobytes(), genome)
    return tuple(found.values())


def cross(
    domain: Domain, a: Genome, b: Genome, rng: np.random.Generator, *, split: bool = True
) -> Genome:
    """The child of two genomes: weight ~ U(0, 1), split at one of the domain's cuts, or nowhere."""
    cuts = domain.cuts
    at = int(cuts[int(rng.integers(len(cuts)))]) if split else domain.dimension
    return domain.recombine(a, b, at, float(rng.random()))


def mutate(domain: Domain, genome: Genome, rng: np.random.Generator, sigma: float) -> Genome:
    """N(0, σ²) on every continuous gene, clipped to [0, 1]; a discrete one is drawn anew with
    probability σ, because a small step would rarely leave its cell.
    """
    if sigma <= 0:
        return genome
    moved = np.clip(genome + rng.normal(0, sigma, domain.dimension), 0, 1)
    redrawn = np.where(rng.random(domain.dimension) < sigma, rng.random(domain.dimension), genome)
    return np.where(domain.discrete, redrawn, moved)
