"""The front of a function that costs next to nothing, such as a surrogate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evomerge.judging import pareto
from evomerge.search.optimizers.parts.reference_points import Floats, Ranks, survivors
from evomerge.search.optimizers.parts.variation import Mask, polynomial_mutation, sbx
from evomerge.search.spaces.genes import Genome

Goals = Callable[[Genome], tuple[Floats, Floats]]
"""Genomes, shape (n, dimension) → goals, larger is better, (n, m), and violations, (n,)."""

POPULATION = 60
GENERATIONS = 80
ETA = 20.0
"""Distribution index of crossover and mutation: the larger, the nearer children stay."""


def front_of(
    goals: Goals, start: Genome, discrete: Mask, size: int, rng: np.random.Generator
) -> Genome:
    """Find at most `size` genomes of the front, spread along it, by NSGA-III (Deb & Jain 2014).

    Args:
        goals: what is maximised; a candidate that breaks constraints is dominated by less broken
            ones.
        start: genomes to begin with, shape (n, dimension); of many, the last.
        discrete: the genes with levels, shape (dimension,).
        size: how many are wanted.
        rng: everything random.

    Returns:
        shape (at most `size`, dimension).
    """
    # 1. begin with what is known and as many uniform genomes
    dimension = len(discrete)
    members = np.concatenate([start[-POPULATION:], rng.random((POPULATION, dimension))])
    # 2. generations: select, cross at random pairs, mutate, join parents and children
    for _ in range(GENERATIONS):
        members = members[_select(goals, members, POPULATION, rng)]
        mates = rng.permutation(members)
        children = sbx(members, mates, discrete, rng, ETA)
        children = polynomial_mutation(children, discrete, rng, ETA, 1 / dimension)
        members = np.concatenate([members, children])
    # 3. keep the first front, and of that as many as are wanted
    members = members[pareto.front(*goals(members))]
    return members[_select(goals, members, min(size, len(members)), rng)]


def _select(goals: Goals, members: Genome, count: int, rng: np.random.Generator) -> Ranks:
    found, broken = goals(members)
    return survivors(-found, pareto.sort(found, broken), count, rng)
