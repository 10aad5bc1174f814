"""Replay: tell an optimizer a study's trials in the order of the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.judging.scores import Judge, Scores
from evomerge.recipe import Recipe
from evomerge.search.optimizers import Known, Optimizer, Proposal
from evomerge.search.spaces.genes import Genome
from evomerge.search.spaces.space import Space
from evomerge.study.judged import judged
from evomerge.study.record import Evaluation

_OF_EARLIER = ("value", "se", "n", "estimated", "violation")
"""What is kept of the scores of an earlier result, beside its objectives."""


def tell(optimizer: Optimizer, judge: Judge, trial: Evaluation) -> None:
    """Tell an optimizer one of its own trials; `judge` is that of the search split."""
    assert trial.ask is not None
    assert trial.tells is not None
    assert trial.genome is not None
    descent = trial.descent.asked if trial.descent else None
    proposal = Proposal(trial.ask, trial.tells, trial.genome, trial.parents, descent)
    (found,) = judged(judge, [trial])
    optimizer.tell(proposal, found.scores)


def points(space: Space, evaluations: Sequence[Evaluation]) -> dict[str, Genome]:
    """digest → genome of what was scored on search beside the optimizer's trials, where the space
    has such a point: parents in the order of the models, then baselines and the grid.
    """
    roles = ["parent", "baseline", "grid"]
    scored = [e for e in evaluations if e.split == "search" and e.role in roles and not e.failed]
    order = {name: place for place, name in enumerate([*space.parents(), *space.baselines()])}
    scored.sort(key=lambda e: (roles.index(e.role), order.get(str(e.name), 0), e.digest))
    found = {e.digest: space.point_of(Recipe.from_json(e.recipe)) for e in scored}
    return {digest: genome for digest, genome in found.items() if genome is not None}


def begin(
    optimizer: Optimizer,
    judge: Judge,
    evaluations: Sequence[Evaluation],
    genomes: Mapping[str, Sequence[float]],
) -> None:
    """Let a new optimizer begin at what is known.

    Args:
        judge: that of the search split.
        genomes: digest → genome, as `points` gave them when the study was begun.
    """
    beside = [e for e in evaluations if e.split == "search" and not e.optimizers_own]
    scored = {e.digest: e for e in beside if not e.failed}
    known = [scored[digest] for digest in genomes]
    optimizer.begin(
        [
            Known(np.array(genomes[one.trial.digest]), one.scores)
            for one in judged(judge, known)
            if one.scores is not None
        ]
    )


def earlier_as_json(known: Sequence[Known]) -> list[dict[str, Any]]:
    """Write results of earlier searches as JSON data, without their items."""
    return [
        {
            "genome": one.genome.tolist(),
            **{name: getattr(one.scores, name) for name in _OF_EARLIER},
            "objectives": list(one.scores.objectives),
        }
        for one in known
    ]


def learn_earlier(optimizer: Optimizer, earlier: Sequence[Mapping[str, Any]]) -> None:
    """Let a new optimizer learn results of earlier searches, as `earlier_as_json` wrote them."""
    optimizer.learn_earlier(
        [
            Known(
                np.array(one["genome"]),
                Scores(
                    **{name: one[name] for name in _OF_EARLIER},
                    objectives=tuple(one["objectives"]),
                ),
            )
            for one in earlier
        ]
    )


def members(
    optimizer: Optimizer,
    judge: Judge,
    evaluations: Sequence[Evaluation],
    genomes: Mapping[str, Sequence[float]] | None,
) -> list[Evaluation]:
    """Return the trials that a new optimizer keeps in its archive or population, told of all.

    Args:
        judge: that of the search split.
        genomes: those it began with, as the study knows them; None: with nothing.
    """
    if genomes is not None:
        begin(optimizer, judge, evaluations, genomes)
    own = [e for e in evaluations if e.optimizers_own]
    for trial in own:
        tell(optimizer, judge, trial)
    by_ask = {trial.ask: trial for trial in own}
    return [by_ask[ask] for ask in optimizer.members()]
