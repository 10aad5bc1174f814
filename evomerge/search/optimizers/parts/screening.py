"""Screening: of several answers that an optimizer could give, take the one a surrogate prefers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from evomerge.judging.scores import Scores
from evomerge.search.optimizers.base import Known, Optimizer, Proposal, ask_index
from evomerge.search.spaces.genes import Genome
from evomerge.search.surrogates.features import Floats
from evomerge.search.surrogates.gaussian_process import Surrogate
from evomerge.study.record import Descend

AUGMENTED = 0.05
"""Weight of the sum in the Tchebycheff norm, which decides between equals in the worst goal."""


class Screened(Optimizer):
    """An optimizer whose answers are screened (pre-selection, Emmerich et al. 2002; Ulmer et al.
    2003).

    To each ask it answers several times over, with randomness of its own for each; the genome whose
    predicted value is the highest is proposed, and the optimizer hears of no other. CMA-ES thus
    draws so many samples for each place of its population, and the preferred one takes it. The
    first answer is what the optimizer alone would have proposed: it stands as long as there are too
    few results. Openings are not screened.

    Results of earlier searches with the same genes, models and documents count as its own.

    For an optimizer of several goals every ask weighs them anew (ParEGO, Knowles 2006), so that the
    whole front is preferred in turn.
    """

    def __init__(self, screened: Optimizer, among: int) -> None:
        """`among`: how many answers to choose from.

        Raises:
            InputError: this optimizer cannot be screened.
        """
        screened.check_screening()
        super().__init__(screened.domain, screened.seed)
        self._screened = screened
        self._among = among
        self._openings = screened._openings
        self._surrogate = Surrogate(screened.domain, all_goals=screened.all_goals)

    @override
    def _begin(self, known: Sequence[Known]) -> None:
        self._screened.begin(known)
        self._openings = self._screened._openings
        for one in known:
            self._surrogate.learn(one.genome, one.scores)

    @override
    def learn_earlier(self, known: Sequence[Known]) -> None:
        for one in known:
            self._surrogate.learn(one.genome, one.scores)

    @override
    def state(self) -> dict[str, Any]:
        return self._screened.state()

    @override
    def members(self) -> Sequence[int]:
        return self._screened.members()

    @override
    def descent_from(self, index: int, genome: Genome, parents: Sequence[int]) -> Descend | None:
        return self._screened.descent_from(index, genome, parents)

    @override
    def descends(self, trials: int) -> tuple[Descend, float] | None:
        return self._screened.descends(trials)

    @override
    def remark(self) -> str | None:
        return self._screened.remark()

    @override
    def begun_with(self) -> dict[str, Any]:
        return self._screened.begun_with()

    @override
    def go_on(self, begun_with: Mapping[str, Any]) -> None:
        self._screened.go_on(begun_with)

    @override
    def check_metrics(self, names: Collection[str]) -> None:
        self._screened.check_metrics(names)

    @override
    def check_goals(self, count: int) -> None:
        self._screened.check_goals(count)

    @override
    def check_budget(self, trials: int) -> None:
        self._screened.check_budget(trials)

    @override
    def _propose(self, rng: np.random.SeedSequence) -> tuple[Genome, tuple[int, ...]]:
        index = ask_index(rng)
        if not self._surrogate.ready:
            return self._screened.answer(index)
        answers = [self._screened.answer(index, nth) for nth in range(self._among)]
        # the least augmented Tchebycheff shortfall under random weights (ParEGO)
        predicted = self._surrogate([genome for genome, _ in answers])
        weights = np.random.default_rng(rng).dirichlet(np.ones(predicted.shape[1]))
        return answers[int(np.argmin(_shortfall(predicted, weights)))]

    @override
    def _learn(self, proposal: Proposal, scores: Scores | None) -> None:
        self._screened.tell(proposal, scores)
        self._surrogate.learn(proposal.genome, scores)


def _shortfall(predicted: Floats, weights: Floats) -> Floats:
    """Compute how far each lies behind the best: augmented Tchebycheff norm, shape (n,)."""
    behind = weights * (predicted.max(axis=0) - predicted)
    return np.asarray(behind.max(axis=1) + AUGMENTED * behind.sum(axis=1))
