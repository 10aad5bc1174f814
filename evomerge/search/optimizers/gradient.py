"""Gradient descents from several starts, and again from the best: AdaMerging's form of search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.judging.scores import Scores
from evomerge.search.optimizers.base import Known, Optimizer, Proposal, ask_index, optimizer
from evomerge.search.spaces.genes import Domain, Genome
from evomerge.study.record import Descend

SLOWEST = 1 / 8
"""The least that is left of `rate` after restarts."""


@optimizer("gradient")
class Gradient(Optimizer):
    """Gradient descents on the genes, from several starts and again from the best so far.

    Every ask is a descent, projected Adam on fresh mini-batches of the search split, and its end is
    scored as a trial. It stops early by the loss of documents held back. The best that is known is
    tried first, as it is. Then descents begin at the campaign's `initial`, the uniform merge, the
    best parent and the best baseline; then at the best so far, once for each task, whose loss
    counts as much as all others together; then again and again at the best so far, in rounds: with
    the tasks' own weights, then with each raised in turn, each round at half the rate of the last,
    down to an eighth. Descents run side by side, and the best so far is that of the moment.
    """

    def __init__(
        self,
        domain: Domain,
        seed: int,
        *,
        steps: Annotated[int, Field(ge=1)] = 30,
        rate: Annotated[float, Field(gt=0, le=1)] = 0.05,
        batch: Annotated[int, Field(ge=1)] = 30,
        held_back: Annotated[float, Field(gt=0, lt=1)] = 0.2,
        check: Annotated[int, Field(ge=1)] = 5,
        patience: Annotated[int, Field(ge=1)] = 3,
        pull: Annotated[float, Field(ge=0)] = 0.0,
        norm: Literal["l1", "l2"] = "l2",
    ) -> None:
        """Begin at the domain's starts.

        Args:
            domain: the genes, where to begin, and how genomes recombine.
            seed: of every draw.
            steps: the most steps of a descent.
            rate: Adam's step, as a share of each gene's range.
            batch: fresh documents for each step; a document costs three items.
            held_back: share of the search split that is kept aside, to see when to stop.
            check: the loss on what was held back is looked at every so many steps.
            patience: a descent stops when so many looks brought nothing better.
            pull: weight in the loss of the distance to the start, a mean over genes. Raise it where
                there are more genes than documents.
            norm: how that distance is measured: `l1` by its absolute value, as in Expert Merging,
                `l2` by its square.
        """
        super().__init__(domain, seed)
        self._asked = Descend(
            "", steps, rate, batch, held_back, check, patience, pull=pull, norm=norm
        )
        self._tasks: tuple[str, ...] = ()
        self._best: tuple[tuple[bool, float], Genome] | None = None
        self._starts: list[tuple[str, Genome]] = []
        self._begin_at([])

    @override
    def begin(self, known: Sequence[Known]) -> None:
        for one in known:
            self._take(one.genome, one.scores)
        self._begin_at(known)

    @override
    def check_screening(self) -> None:
        raise InputError(
            "optimizer.screen: every ask is a descent, of which there is only one; leave screen out"
        )

    @override
    def descends(self, trials: int) -> tuple[Descend, float]:
        return self._asked, trials

    @override
    def descent_from(self, index: int, genome: Genome, parents: Sequence[int]) -> Descend | None:
        # 1. what is known is tried as it is; then come the starts
        first = len(self._openings) - len(self._starts)
        if index < first:
            return None
        if index < len(self._openings):
            return self._from(self._starts[index - first][0])
        # 2. rounds from the best so far: in the first each task is raised, in later ones none, too
        place = index - len(self._openings)
        tasks: list[str | None] = [*self._tasks] if len(self._tasks) > 1 else []
        if place < len(tasks):
            return self._from("the best so far", tasks[place])
        rounds, turn = divmod(place - len(tasks), len(tasks) + 1)
        slower = max(SLOWEST, 0.5 ** (rounds + 1))
        return self._from("the best so far", [None, *tasks][turn], slower)

    @override
    def _propose(self, rng: np.random.SeedSequence) -> tuple[Genome, tuple[int, ...]]:
        if self._best is None:  # nothing was told yet, or all failed
            starts = self._starts
            return starts[ask_index(rng) % len(starts)][1], ()
        return self._best[1], ()

    @override
    def _learn(self, proposal: Proposal, scores: Scores | None) -> None:
        if scores is not None:
            self._take(proposal.genome, scores)

    def _take(self, genome: Genome, scores: Scores) -> None:
        self._tasks = tuple(scores.scored_items)
        if self._best is None or scores.best_key > self._best[0]:
            self._best = scores.best_key, genome

    def _begin_at(self, known: Sequence[Known]) -> None:
        """Set what is tried first: the best known as it is, and descents from the starts."""
        models = {genome.tobytes() for genome in self.domain.seeds.values()}
        ranked = sorted(known, key=lambda one: one.scores.best_key, reverse=True)
        parents = [one.genome for one in ranked if one.genome.tobytes() in models]
        merges = [one.genome for one in ranked if one.genome.tobytes() not in models]
        found = [
            *(("initial", genome) for genome in self.domain.starts),
            ("uniform", self.domain.initial),
            *(("the best parent", genome) for genome in parents[:1]),
            *(("the best baseline", genome) for genome in merges[:1]),
        ]
        once: dict[bytes, tuple[str, Genome]] = {}
        for origin, genome in found:
            once.setdefault(genome.tobytes(), (origin, genome))
        self._starts = list(once.values())
        best = [] if self._best is None else [self._best[1]]
        self._openings = [*best, *(genome for _, genome in self._starts)]

    def _from(self, origin: str, task: str | None = None, slower: float = 1.0) -> Descend:
        return replace(self._asked, origin=origin, task=task, rate=self._asked.rate * slower)


@optimizer("adamerging")
class AdaMerging(Gradient):
    """`gradient` on how undecided the merge is: AdaMerging (Yang et al. 2023, arXiv:2310.02575).

    It needs no labels for its steps: its loss is that of `surrogate_loss: {kind: entropy}`, which
    rewards confidence, right or wrong. Scores decide all the same.
    """

    loss = "entropy"


@optimizer("expert_merging")
class ExpertMerging(Gradient):
    """`gradient` towards the experts' own answers: Expert Merging (Zhang et al. 2025,
    arXiv:2509.25712).

    It needs no labels for its steps: its loss is that of `surrogate_loss: {kind: experts}`, which
    names the expert of each task. `pull: 5, norm: l1` are its authors', and `space.weights.chunks`
    has the genes of Expert Merging++.
    """

    loss = "experts"
