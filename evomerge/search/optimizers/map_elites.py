"""MAP-Elites: the best of every cell of a grid over two measures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.common.plugins import nearest
from evomerge.judging.scores import Scores, Values
from evomerge.search.archives import GridArchive
from evomerge.search.optimizers.base import Known, Proposal, kept, optimizer
from evomerge.search.optimizers.parts.gradient_mutation import GradientMutation
from evomerge.search.optimizers.parts.variation import SPREAD, cross, gaussian_mutation, openings
from evomerge.search.spaces.genes import Domain, Genome

Names = Annotated[list[str], Field(min_length=1, max_length=2)]
Cells = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]
Ranges = Annotated[list[Range], Field(min_length=2, max_length=2)]


@optimizer("map_elites")
class MapElites(GradientMutation):
    """MAP-Elites with crossover over two named measures (Mouret & Clune 2015, arXiv:1504.04909).

    A measure is a task's metric or a recipe statistic. A candidate takes the cell of its measures
    when that is empty or holds a worse one. Parents are two elites drawn uniformly. Failures,
    candidates that break a constraint and those that were not measured on all items stay out.

    Example: `kind: map_elites, measures: [gsm8k, arc_challenge], grid: [10, 10]`
    """

    def __init__(
        self,
        domain: Domain,
        seed: int,
        *,
        measures: Names | None = None,
        grid: Cells = [10, 10],  # noqa: B006 -- never written to
        bounds: Ranges = [[0, 1], [0, 1]],  # noqa: B006
        split: bool = True,
        mutation: Annotated[float, Field(ge=0, le=1)] = 0.05,
        warmup: Annotated[int, Field(ge=0)] = 15,
        gradient: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        """Begin with an empty grid.

        Args:
            domain: the genes, where to begin, and how genomes recombine.
            seed: of every draw.
            measures: names of tasks or recipe statistics, by default the first two there are.
            grid: cells along each measure.
            bounds: [low, high] of each measure; values beyond count to the outermost cell.
            split: cross over at a random cut of the model's depth; without it, gene by gene.
            mutation: σ of the noise on genes, as a share of each gene's range.
            warmup: results to wait for before elites breed.
            gradient: the probability that a child then descends by gradient, three steps on the
                task that its first parent is worst at.
        """
        for name, (low, high) in zip(("first", "second"), bounds, strict=True):
            if not low < high:
                raise InputError(
                    f"optimizer.bounds: the {name} measure's [{low}, {high}] cross; "
                    "write [low, high] with low < high"
                )
        super().__init__(domain, seed, gradient)
        self._openings = openings(domain)
        self._warmup = warmup
        self._measures = measures
        self._named: list[str] = []  # the measures, once there are scores
        self._split = split
        self._mutation = mutation
        self._archive = GridArchive(grid, bounds)
        self._elites: dict[int, tuple[int, Genome]] = {}  # by cell: ask index, genome

    @override
    def check_metrics(self, names: Collection[str]) -> None:
        """Refuse a measure that is neither a task nor a recipe statistic."""
        known = [*names, *self.domain.statistics(self.domain.initial)]
        for name in self._measures or ():
            if name not in known:
                raise InputError(
                    f"optimizer.measures: {name!r} is neither a task nor a recipe statistic; "
                    f"{nearest(name, known)}"
                )

    @override
    def state(self) -> dict[str, Any]:
        """The elites, with the cell of each (its places along the two measures), the measures, and
        the share of cells that hold an elite.
        """
        cells = np.unravel_index(self._archive.slots, self._archive.shape)
        return {
            **kept(self.members(), cells=np.transpose(cells).tolist()),
            "measures": self._named,
            "coverage": self._archive.coverage(),
        }

    @override
    def members(self) -> Sequence[int]:
        """The elites, in the order of `state`'s cells."""
        return [self._elites[slot][0] for slot in self._archive.slots.tolist()]

    @override
    def _begin(self, known: Sequence[Known]) -> None:
        """Learn nothing: its seeds are its first trials, and the grid is of trials."""

    @override
    def _propose(self, rng: np.random.SeedSequence) -> tuple[Genome, tuple[int, ...]]:
        random = np.random.default_rng(rng)
        # 1. until the grid has warmed up, a seed mutated widely
        if self.tells < len(self._openings) + self._warmup or not self._elites:
            parent = int(random.integers(len(self._openings)))
            return gaussian_mutation(self.domain, self._openings[parent], random, SPREAD), (parent,)
        # 2. two elites drawn uniformly, recombined and mutated
        cells = self._archive.parents(random)
        (first, a), (second, b) = (self._elites[cell] for cell in cells)
        child = cross(self.domain, a, b, random, split=self._split)
        child = gaussian_mutation(self.domain, child, random, self._mutation)
        return child, tuple(dict.fromkeys((first, second)))

    @override
    def _learn(self, proposal: Proposal, scores: Scores | None) -> None:
        if scores is None or scores.violation > 0 or scores.estimated:
            return
        # a candidate takes the cell of its measures when it is better than the elite there
        cell = self._archive.offer(self._place(proposal.genome, scores), scores.value)
        if cell is not None:
            self._elites[cell] = (proposal.ask, proposal.genome)

    def _place(self, genome: Genome, scores: Scores) -> Values:
        """Measure a candidate, shape (2,); a measure that is missing counts as 0."""
        values = {**self.domain.statistics(genome), **scores.metrics}
        self._named = (self._measures or [*scores.metrics, *self.domain.statistics(genome)])[:2]
        found = [values.get(name, 0.0) for name in self._named]
        return np.array([*found, 0.0, 0.0][:2])
