"""Judge recorded items: every decision rests on this, the driver's and the readers'."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from typing_extensions import override

from evomerge.judging.constraints import Items
from evomerge.judging.estimators import Estimates
from evomerge.judging.scores import Judge, Scores, fitness_of
from evomerge.judging.selection import Judged, by_preference, parents_last
from evomerge.study.record import Evaluation


def judge_on(judge: Judge, evaluations: Iterable[Evaluation], split: str) -> Judge:
    """Give the judge the parents' items on a split, as far as they are recorded."""
    return judge.against(
        {
            e.name: e.scores
            for e in evaluations
            if e.role == "parent" and e.split == split and e.name and not e.failed
        }
    )


def judged(judge: Judge, trials: Sequence[Evaluation]) -> list[Judged[Evaluation]]:
    """Judge trials of one split, in their order; `judge` is that split's."""
    return [
        Judged(
            trial,
            trial.digest,
            None if trial.failed else scores_of(judge, trial.scores, trial.estimates),
        )
        for trial in trials
    ]


def as_recorded(judge: Judge, trials: Sequence[Evaluation]) -> list[Judged[Evaluation]]:
    """Give trials of one split, in their order, the scores that they were recorded with.

    Of one goal that is what `judged` finds, without reading an item; goals are judged again.
    """
    if judge.objective.goals is not None:
        return judged(judge, trials)
    return [Recorded(trial) for trial in trials]


class Recorded(Judged[Evaluation]):
    """A trial with the scores that it was recorded with, put together when they are asked for."""

    def __init__(self, trial: Evaluation) -> None:
        object.__setattr__(self, "trial", trial)
        object.__setattr__(self, "digest", trial.digest)

    @property
    @override
    def value(self) -> float | None:
        trial = self.trial
        if trial.value is None or trial.estimated:
            return None
        return fitness_of(trial.value, trial.violation)

    @property
    def scores(self) -> Scores | None:
        """The scores as recorded; None when it failed."""
        trial = self.trial
        if trial.value is None:
            return None
        return Scores(
            value=trial.value,
            se=trial.se or 0.0,
            n=trial.n,
            estimated=trial.estimated,
            violation=trial.violation,
        )


def ranked(
    judge: Judge, trials: Sequence[Judged[Evaluation]], known: Iterable[Evaluation], split: str
) -> list[Judged[Evaluation]]:
    """Rank recipes, the preferred first; of several goals the front, parents' equals last.

    Args:
        judge: that of the split.
        trials: judged on the split.
        known: evaluations, the parents' among them.
        split: of all that is compared.
    """
    first = by_preference(trials, judge.objective)
    if judge.objective.goals is None:
        return first
    parents = [e for e in known if e.role == "parent" and e.split == split]
    return parents_last(first, judged(judge, parents))


def scores_of(judge: Judge, items: Items, estimates: Estimates) -> Scores:
    """Judge items; with estimates, those of a recipe that was not measured on all of them."""
    return judge.estimated(items, estimates) if estimates else judge.scores(items)


def searched(judge: Judge, evaluations: Sequence[Evaluation]) -> list[Judged[Evaluation]]:
    """Judge the optimizer's own trials on search, in the order of the record."""
    own = [e for e in evaluations if e.optimizers_own]
    return judged(judge_on(judge, evaluations, "search"), own)


def known_of(evaluations: Iterable[Evaluation]) -> dict[tuple[str, str], Evaluation]:
    """Map (digest, split) to its evaluation: measured ones before estimated, then the latest."""
    known: dict[tuple[str, str], Evaluation] = {}
    for evaluation in evaluations:
        before = known.get((evaluation.digest, evaluation.split))
        if before is None or before.estimated or not evaluation.estimated:
            known[evaluation.digest, evaluation.split] = evaluation
    return known


def check_of(trial: Evaluation) -> tuple[float, float, float] | None:
    """Estimate on the lowest rung, its standard error, and the full score; None if one lacks."""
    if not trial.measured or not trial.rungs or trial.value is None:
        return None
    return trial.rungs[0].value, trial.rungs[0].se, trial.value
