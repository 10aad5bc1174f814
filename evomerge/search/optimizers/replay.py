"""Replay: tell an optimizer a study's trials in the order of the record."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.judging.scores import Judge
from evomerge.search.optimizers import Optimizer, Proposal
from evomerge.study.judged import judged
from evomerge.study.record import Evaluation


def tell(optimizer: Optimizer, judge: Judge, trial: Evaluation) -> None:
    """Tell an optimizer one of its own trials; `judge` is that of the search split."""
    assert trial.ask is not None
    assert trial.tells is not None
    assert trial.genome is not None
    proposal = Proposal(trial.ask, trial.tells, trial.genome, trial.parents)
    (found,) = judged(judge, [trial])
    optimizer.tell(proposal, found.scores)


def members(
    optimizer: Optimizer, judge: Judge, evaluations: Sequence[Evaluation]
) -> list[Evaluation]:
    """Return the trials that a new optimizer keeps in its archive or population, told of all."""
    own = [e for e in evaluations if e.optimizers_own]
    for trial in own:
        tell(optimizer, judge, trial)
    by_ask = {trial.ask: trial for trial in own}
    return [by_ask[ask] for ask in optimizer.members()]
