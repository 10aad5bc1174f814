"""Recorded items judged: what every decision rests on, driver's or reader's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evomerge.judging.scores import Judge
from evomerge.judging.selection import Judged
from evomerge.study.record import Evaluation


def judge_on(judge: Judge, evaluations: Iterable[Evaluation], split: str) -> Judge:
    """The judge of a split, knowing the parents' items on it as far as they are recorded."""
    return judge.against(
        {
            e.name: e.scores
            for e in evaluations
            if e.role == "parent" and e.split == split and e.name and not e.failed
        }
    )


def judged(judge: Judge, trials: Sequence[Evaluation]) -> list[Judged[Evaluation]]:
    """Trials of one split with their scores; `judge` is that split's."""
    return [
        Judged(trial, trial.digest, None if trial.failed else judge.scores(trial.scores))
        for trial in trials
    ]


def searched(judge: Judge, evaluations: Sequence[Evaluation]) -> list[Judged[Evaluation]]:
    """The optimizer's own trials, judged on search, in the order of the record."""
    own = [e for e in evaluations if e.optimizers_own]
    return judged(judge_on(judge, evaluations, "search"), own)
