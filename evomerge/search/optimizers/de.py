"""Differential evolution, in Evolver's form and in the textbook's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from evomerge.judging.scores import Scores
from evomerge.search.optimizers.base import Known, Optimizer, Proposal, ask_index, optimizer
from evomerge.search.optimizers.parts.variation import SPREAD, gaussian_mutation, reflect
from evomerge.search.spaces.genes import Domain, Genome


@optimizer("de")
class DifferentialEvolution(Optimizer):
    """Differential evolution: Evolver (arXiv:2406.12208), or DE/rand/1/bin (Storn & Price 1997).

    Ask k is a trial for slot k mod N, and replaces the slot's member when it is no worse (a mere
    estimate never replaces what was measured); each trial is made from the members of the moment,
    so workers never wait for a generation. What is known before fills the last slots, the domain's
    starts the first ones; an empty slot (nothing told yet, or a failure) gets a sample around the
    best that was known (σ = 0.2), or a uniform one where nothing was. For member i, with x_a, x_b,
    x_c three others drawn at random:

    - `evolver`: the mutant is (1 − F)·x_i + F·x_a, an interpolation. (The authors' code selects on
      the test split; here the search split decides, as for every optimizer.)
    - `textbook`: the mutant is x_a + F·(x_b − x_c), mirrored at the bounds.

    The trial takes each gene from the mutant with probability `crossover_rate`, one at least.
    A mutant's discrete gene is one parent's, whole: x_a's (`evolver`: with probability F, else its
    own), and in `textbook` x_b's with probability F.
    """

    def __init__(
        self,
        domain: Domain,
        seed: int,
        *,
        variant: Literal["evolver", "textbook"] = "evolver",
        population: Annotated[int, Field(ge=4)] = 20,
        scale: Annotated[float, Field(gt=0, le=2)] = 0.5,
        crossover_rate: Annotated[float, Field(ge=0, le=1)] | None = None,
    ) -> None:
        """Begin with empty slots.

        Args:
            domain: the genes, where to begin, and how genomes recombine.
            seed: of every draw.
            variant: how mutants are made.
            population: N, the number of slots.
            scale: F, the length of a mutant's step.
            crossover_rate: CR, by default 0.9 for `textbook`, and 0.5 for `evolver`, whose members
                would be one too soon.
        """
        super().__init__(domain, seed)
        self._variant = variant
        self._population = population
        self._scale = scale
        default_rate = 0.9 if variant == "textbook" else 0.5
        self._crossover_rate = default_rate if crossover_rate is None else crossover_rate
        self._discrete = domain.discrete
        self._members: dict[int, tuple[Genome, tuple[bool, float], int]] = {}
        """Slot → genome, best_key, ask."""
        self._best_known: Genome | None = None

    @override
    def _begin(self, known: Sequence[Known]) -> None:
        super()._begin(known)
        best = max(self._members.values(), key=lambda member: member[1], default=None)
        self._best_known = best[0] if best else None

    @override
    def members(self) -> Sequence[int]:
        return [ask for _, _, ask in self._members.values() if ask >= 0]

    @override
    def _propose(self, rng: np.random.SeedSequence) -> tuple[Genome, tuple[int, ...]]:
        generator = np.random.default_rng(rng)
        slot = ask_index(rng) % self._population
        # 1. a slot without a member, or with too few others, gets a sample
        others = [other for other in sorted(self._members) if other != slot]
        if slot not in self._members or len(others) < 3:
            return self._first(generator), ()
        # 2. members drawn at random, and the mutant of them
        drawn = generator.choice(
            others, size=3 if self._variant == "textbook" else 1, replace=False
        )
        genomes, _, asks = zip(*(self._members[s] for s in (slot, *drawn.tolist())), strict=True)
        mutant = self._mutant(genomes, generator)
        # 3. binomial crossover with the member, one gene of the mutant at least
        crosses = generator.random(self.domain.dimension) < self._crossover_rate
        crosses[generator.integers(self.domain.dimension)] = True
        return np.where(crosses, mutant, genomes[0]), asks

    @override
    def _learn(self, proposal: Proposal, scores: Scores | None) -> None:
        slot = proposal.ask % self._population
        if scores is None:
            return
        # selection: the trial replaces a member that is no better
        if slot not in self._members or scores.best_key >= self._members[slot][1]:
            self._members[slot] = proposal.genome, scores.best_key, proposal.ask

    def _first(self, generator: np.random.Generator) -> Genome:
        """Draw a slot's first member: around the best that was known, uniformly without it."""
        if self._best_known is None:
            return generator.random(self.domain.dimension)
        return gaussian_mutation(self.domain, self._best_known, generator, SPREAD)

    def _mutant(self, genomes: tuple[Genome, ...], generator: np.random.Generator) -> Genome:
        # discrete genes are taken whole, from x_a or x_b with probability F
        exchanged = generator.random(self.domain.dimension) < self._scale
        if self._variant == "evolver":
            x, a = genomes
            mutant, whole = x + self._scale * (a - x), np.where(exchanged, a, x)
        else:
            _, a, b, c = genomes
            mutant, whole = reflect(a + self._scale * (b - c)), np.where(exchanged, b, a)
        return np.where(self._discrete, whole, mutant)
