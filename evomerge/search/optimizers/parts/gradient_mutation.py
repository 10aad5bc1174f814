"""Gradient mutation: some children descend a few steps before they are scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from typing_extensions import override

from evomerge.judging.scores import Scores
from evomerge.search.optimizers.base import Known, Optimizer, Proposal
from evomerge.search.spaces.genes import Domain, Genome
from evomerge.study.record import Descend

STEPS = 3
"""Steps of such a descent, each of a mini-batch: with 30 documents, 270 items."""
_STREAM = 1 << 20
"""Stream of the random numbers that say which children descend."""


class GradientMutation(Optimizer):
    """An optimizer whose children descend, at a probability, on the task that their parent, and so
    their niche, is worst at: farthest behind the best seen, as a share of what was seen there.
    """

    def __init__(self, domain: Domain, seed: int, gradient: float) -> None:
        """`gradient`: the probability that a child descends."""
        super().__init__(domain, seed)
        self._gradient = gradient
        self._seen: dict[int, dict[str, float]] = {}  # ask → task → mean, larger is better

    @override
    def begin(self, known: Sequence[Known]) -> None:
        super().begin(known)
        for number, one in enumerate(known, 1):
            self._see(-number, one.scores)

    @override
    def tell(self, proposal: Proposal, scores: Scores | None) -> None:
        super().tell(proposal, scores)
        self._see(proposal.ask, scores)

    @override
    def descent_from(self, index: int, genome: Genome, parents: Sequence[int]) -> Descend | None:
        if not self._gradient or index < len(self._openings):
            return None
        chance = np.random.default_rng(self._random(index, _STREAM)).random()
        return self._descent(self._worst_task(parents)) if chance < self._gradient else None

    @override
    def descends(self, trials: int) -> tuple[Descend, float] | None:
        return (self._descent(None), self._gradient * trials) if self._gradient else None

    def _descent(self, task: str | None) -> Descend:
        return Descend("a child", STEPS, check=0, task=task, share=1.0)

    def _see(self, ask: int, scores: Scores | None) -> None:
        """Remember the means of a result that was measured on all items."""
        if self._gradient and scores is not None and not scores.estimated:
            self._seen[ask] = {
                task: scores.metrics[task] * scores.signs.get(task, 1.0)
                for task in scores.scored_items
            }

    def _worst_task(self, parents: Sequence[int]) -> str | None:
        """Find the task that the first parent is worst at; None where nothing is known of it."""
        ours = next((self._seen[ask] for ask in parents if ask in self._seen), None)
        if not ours:
            return None
        behind = {}
        for task, mean in ours.items():
            # how far behind the best, where 1 is the worst there was
            seen = [means[task] for means in self._seen.values() if task in means]
            width = max(seen) - min(seen)
            behind[task] = (max(seen) - mean) / width if width > 0 else 0.0
        return max(behind, key=lambda task: behind[task])
