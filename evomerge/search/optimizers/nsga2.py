"""NSGA-II: a front of trade-offs, spread by crowding distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import override

from evomerge.judging import pareto
from evomerge.judging.scores import Scores
from evomerge.search.optimizers.base import Proposal, optimizer
from evomerge.search.optimizers.parts.gradient_mutation import GradientMutation
from evomerge.search.optimizers.parts.variation import polynomial_mutation, sbx
from evomerge.search.spaces.genes import Domain, Genome


@optimizer("nsga2")
class Nsga2(GradientMutation):
    """NSGA-II, steady-state, for several objectives under constraints (Deb et al. 2002).

    The first `population` results come from uniform samples. Then every child is made from the
    population as it stands, and every result enters it, whereupon the member goes that is the most
    crowded of the worst front (the steady-state scheme of Durillo et al. 2009): workers never wait.
    Constraints come before objectives. A failure does not enter. With one objective this is a
    steady-state genetic algorithm.
    """

    all_goals: ClassVar[bool] = True

    def __init__(
        self,
        domain: Domain,
        seed: int,
        *,
        population: Annotated[int, Field(ge=4)] = 40,
        crossover: Literal["sbx", "split"] = "sbx",
        crossover_rate: Annotated[float, Field(ge=0, le=1)] = 0.9,
        crossover_eta: Annotated[float, Field(ge=0)] = 15.0,
        mutation_rate: Annotated[float, Field(ge=0, le=1)] | None = None,
        mutation_eta: Annotated[float, Field(ge=0)] = 20.0,
        gradient: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        """Begin with uniform samples.

        Args:
            domain: the genes, where to begin, and how genomes recombine.
            seed: of every draw.
            population: the number of members that are kept.
            crossover: `sbx` gene by gene, `split` at one point of the model's depth, as the space
                recombines.
            crossover_rate: share of children with two parents.
            crossover_eta: of `sbx`: the larger, the nearer children stay to their parents.
            mutation_rate: the probability that a gene mutates, by default 1/n.
            mutation_eta: the larger, the nearer mutants stay to what they were.
            gradient: the probability that a child then descends by gradient, three steps on the
                task that its first parent is worst at.
        """
        super().__init__(domain, seed, gradient)
        self._population = population
        self._crossover = crossover
        self._crossover_rate = crossover_rate
        self._crossover_eta = crossover_eta
        default_rate = 1 / max(1, domain.dimension)
        self._mutation_rate = default_rate if mutation_rate is None else mutation_rate
        self._mutation_eta = mutation_eta
        self._discrete = domain.discrete
        self._asks: list[int] = []
        self._genomes: list[Genome] = []
        self._objectives: list[tuple[float, ...]] = []
        self._violations: list[float] = []
        self._order: NDArray[np.float64] = np.empty((0, 2))

    @override
    def members(self) -> Sequence[int]:
        return [ask for ask in self._asks if ask >= 0]

    @override
    def _propose(self, rng: np.random.SeedSequence) -> tuple[Genome, tuple[int, ...]]:
        generator = np.random.default_rng(rng)
        # 1. uniform samples until the population is full
        if len(self._genomes) < self._population:
            return generator.random(self.domain.dimension), ()
        # 2. parents by binary tournament, crossover, mutation
        a = self._tournament(generator)
        if generator.random() >= self._crossover_rate:
            return self._mutated(self._genomes[a], generator), (self._asks[a],)
        b = self._tournament(generator)
        child = self._mutated(self._crossed(a, b, generator), generator)
        return child, (self._asks[a], self._asks[b])

    @override
    def _learn(self, proposal: Proposal, scores: Scores | None) -> None:
        if scores is None or not np.isfinite(scores.objectives).all():
            return
        # 1. the newcomer enters
        self._asks.append(proposal.ask)
        self._genomes.append(proposal.genome)
        self._objectives.append(scores.objectives)
        self._violations.append(max(0.0, scores.violation))
        # 2. fronts by constrained domination (Deb et al. 2002, §III-A and VI)
        objectives, violations = np.array(self._objectives), np.array(self._violations)
        ranks = pareto.sort(objectives, violations)
        # 3. one member goes when there are too many, and the rest is ranked again
        if len(self._genomes) > self._population:
            out = self._superfluous(objectives, ranks)
            for members in (self._asks, self._genomes, self._objectives, self._violations):
                del members[out]
            objectives, violations = np.delete(objectives, out, 0), np.delete(violations, out)
            ranks = pareto.sort(objectives, violations)
        # 4. the order in which tournaments compare the members
        self._order = self._preference(objectives, violations, ranks)

    def _superfluous(self, objectives: NDArray[np.float64], ranks: NDArray[np.int64]) -> int:
        """Return the index of the member to drop: the worst front's most crowded, or the oldest."""
        worst = np.flatnonzero(ranks == ranks.max())
        return int(worst[np.argmin(pareto.crowding(objectives[worst]))])

    def _preference(
        self,
        objectives: NDArray[np.float64],
        violations: NDArray[np.float64],
        ranks: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Return the keys of tournaments, shape (members, 2), the smaller wins: rank, −crowding."""
        crowding = np.empty(len(ranks))
        for rank in range(ranks.max() + 1):
            members = ranks == rank
            crowding[members] = pareto.crowding(objectives[members])
        return np.column_stack([ranks, -crowding])

    def _tournament(self, generator: np.random.Generator) -> int:
        a, b = generator.integers(len(self._genomes), size=2)
        return int(a if tuple(self._order[a]) <= tuple(self._order[b]) else b)

    def _crossed(self, a: int, b: int, generator: np.random.Generator) -> Genome:
        x, y = self._genomes[a], self._genomes[b]
        if self._crossover == "sbx":
            return sbx(x, y, self._discrete, generator, self._crossover_eta)
        split = int(generator.choice(self.domain.cuts))
        return self.domain.recombine(x, y, split, generator.random())

    def _mutated(self, genome: Genome, generator: np.random.Generator) -> Genome:
        return polynomial_mutation(
            genome, self._discrete, generator, self._mutation_eta, self._mutation_rate
        )
