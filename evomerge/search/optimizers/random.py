"""Uniform random search: what every other optimizer is compared with."""

from __future__ import annotations

import numpy as np
from typing_extensions import override

from evomerge.judging.scores import Scores
from evomerge.search.optimizers.base import Optimizer, Proposal, optimizer
from evomerge.search.spaces.genes import Genome


@optimizer("random")
class RandomSearch(Optimizer):
    """Uniform over the bounds, every ask on its own."""

    @override
    def _propose(self, rng: np.random.SeedSequence) -> tuple[Genome, tuple[int, ...]]:
        return np.random.default_rng(rng).random(self.domain.dimension), ()

    @override
    def _learn(self, proposal: Proposal, scores: Scores | None) -> None:
        pass
