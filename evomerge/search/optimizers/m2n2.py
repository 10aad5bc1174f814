"""M2N2: an archive that competes for items, with attraction and split-point crossover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from typing_extensions import override

from evomerge.judging.scores import Scores
from evomerge.search.archives import ItemColumns, NicheArchive
from evomerge.search.optimizers.base import Known, Proposal, kept, optimizer
from evomerge.search.optimizers.parts.gradient_mutation import GradientMutation
from evomerge.search.optimizers.parts.variation import SPREAD, cross, gaussian_mutation, openings
from evomerge.search.spaces.genes import Domain, Genome


class Competition(GradientMutation):
    """Evolution over a `NicheArchive`; M2N2 and the plain genetic algorithm are two settings of it.

    The archive is seeded with the domain's starts, the sources and the initial point. Until
    `warmup` further results have arrived, children come from the seeds, afterwards from the
    archive: A by fitness, B by attraction, recombined by the domain at a random cut, then mutated.
    A result enters the archive when it arrives; failures, candidates that break a constraint, and
    those stopped on a rung, on whose few items all members would have to compete, do not. Scores
    without items count as one item. α, ties and fallbacks: see `NicheArchive`; how genomes
    recombine, Ω among it: see the domain.
    """

    def __init__(
        self,
        domain: Domain,
        seed: int,
        *,
        population: int,
        alpha: float,
        attraction: bool,
        split: bool,
        mutation: float,
        warmup: int | None,
        gradient: float,
    ) -> None:
        """Take the options; `M2N2` documents them."""
        super().__init__(domain, seed, gradient)
        self._openings = openings(domain)
        self._warmup = population if warmup is None else warmup
        self._attraction = attraction
        self._split = split
        self._mutation = mutation
        self._columns = ItemColumns()
        self._archive = NicheArchive(population, alpha)
        self._members: list[tuple[int, Genome]] = []  # by slot: ask index, genome

    @override
    def state(self) -> dict[str, Any]:
        """The archive's members, its coverage of items and its mean entropy per item (see
        `NicheArchive`).
        """
        return {
            **kept(self.members()),
            "coverage": self._archive.coverage(),
            "entropy": self._archive.entropy(),
        }

    @override
    def members(self) -> Sequence[int]:
        return [ask for ask, _ in self._members]

    @override
    def _begin(self, known: Sequence[Known]) -> None:
        """Learn nothing: its seeds are its first trials, and the archive is of trials."""

    @override
    def _propose(self, rng: np.random.SeedSequence) -> tuple[Genome, tuple[int, ...]]:
        random = np.random.default_rng(rng)
        # 1. children of the seeds until the archive has warmed up
        if self.tells < len(self._openings) + self._warmup or len(self._archive) < 2:
            return self._first_child(random)
        # 2. parents by fitness and attraction (arXiv:2508.16204, eqs. 1 and 2)
        slots = self._archive.parents(random, attraction=self._attraction)
        (first, a), (second, b) = (self._members[slot] for slot in slots)
        # 3. split-point crossover (eq. 3), then mutation
        child = cross(self.domain, a, b, random, split=self._split)
        child = gaussian_mutation(self.domain, child, random, self._mutation)
        return child, tuple(dict.fromkeys((first, second)))

    def _first_child(self, rng: np.random.Generator) -> tuple[Genome, tuple[int, ...]]:
        """Recombine two seeds and spread the child out; only recombine when mutation is off."""
        count = len(self._openings)
        if count == 1:
            return gaussian_mutation(self.domain, self._openings[0], rng, SPREAD), (0,)
        first, second = (int(i) for i in rng.choice(count, 2, replace=False))
        a, b = self._openings[first], self._openings[second]
        child = cross(self.domain, a, b, rng, split=self._split)
        sigma = SPREAD if self._mutation else 0
        return gaussian_mutation(self.domain, child, rng, sigma), (first, second)

    @override
    def _learn(self, proposal: Proposal, scores: Scores | None) -> None:
        if scores is None or scores.violation > 0 or scores.estimated:
            return
        # the newcomer competes item by item; it takes the slot of the member that goes
        items = scores.scored_items or {"": np.array([scores.value])}
        row = self._columns.row(items, scores.signs)
        slot = self._archive.offer(row, self._columns.tasks)
        if slot is not None:
            self._members[slot : slot + 1] = [(proposal.ask, proposal.genome)]


@optimizer("m2n2")
class M2N2(Competition):
    """M2N2: niches over items, attraction, split-point crossover (arXiv:2508.16204).

    The authors do not mutate when merging language models; here mutation on genes is on by default,
    because genes such as densities cannot be reached by recombining the sources.
    """

    def __init__(
        self,
        domain: Domain,
        seed: int,
        *,
        population: Annotated[int, Field(ge=2)] = 15,
        alpha: Annotated[float, Field(ge=0)] = 1.0,
        attraction: bool = True,
        split: bool = True,
        mutation: Annotated[float, Field(ge=0, le=1)] = 0.05,
        warmup: Annotated[int, Field(ge=0)] | None = None,
        gradient: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        """Begin with an empty archive.

        Args:
            domain: the genes, where to begin, and how genomes recombine.
            seed: of every draw.
            population: the archive's size. Raise it where there are many tasks, each with experts
                of its own.
            alpha: how much crowding costs: at 0 members compete by fitness alone.
            attraction: choose the second parent for the items that the first does badly on. Turn it
                off to see what it brings; parents are then drawn by fitness alone.
            split: cross over at a random cut of the model's depth; without it, gene by gene.
            mutation: σ of the noise on genes, as a share of each gene's range.
            warmup: results to wait for before the archive breeds, by default as many as it holds.
            gradient: the probability that a child then descends by gradient, three steps on the
                task that its first parent is worst at.
        """
        super().__init__(
            domain,
            seed,
            population=population,
            alpha=alpha,
            attraction=attraction,
            split=split,
            mutation=mutation,
            warmup=warmup,
            gradient=gradient,
        )
