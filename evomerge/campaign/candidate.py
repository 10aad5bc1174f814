"""Candidates: recipes to measure on a split, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.recipe import Recipe
from evomerge.search.optimizers import Proposal
from evomerge.search.spaces.genes import Genome
from evomerge.study.record import DescentRecord, Evaluation, RungProgress


@dataclass(frozen=True)
class Candidate:
    """A recipe to measure on a split.

    Attributes:
        role: why it is measured; as in `Evaluation`, or `check` (of `campaign.failure_streak`).
        name: of a parent or baseline.
        proposal: what the optimizer asked for, if it did.
        attempt: from 1; counts the times it took its worker or the driver down.
        ticket: the slot of its marker in the study, once it has one.
        progress: with rungs: what was measured of the optimizer's candidate so far.
        genome: of what is no proposal, shape (dimension,), if it has one.
        parents: ask indices of the trials that it was made from, if it is no proposal.
        descent: how far the descent has come that its proposal asked for, if it did.
    """

    recipe: Recipe
    split: str
    role: str
    name: str | None = None
    proposal: Proposal | None = None
    attempt: int = 1
    ticket: int | None = None
    progress: RungProgress | None = None
    genome: Genome | None = None
    parents: tuple[int, ...] = ()
    descent: DescentRecord | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The recipe's digest and the split: nothing is measured twice under one key."""
        return self.recipe.digest, self.split

    @property
    def descending(self) -> bool:
        """True while its descent goes on: it is not to be scored yet."""
        return self.descent is not None and self.descent.done is None


def proposed_again(trial: Evaluation, tells: int) -> Proposal:
    """Propose a withdrawn trial's genome once more, after so many tells; its descent too."""
    assert trial.ask is not None
    assert trial.genome is not None
    if trial.descent is None:
        return Proposal(trial.ask, tells, trial.genome, trial.parents)
    start = np.array(trial.descent.start)
    return Proposal(trial.ask, tells, start, trial.parents, trial.descent.asked)


def finalist(trial: Evaluation, split: str) -> Candidate:
    """Make a candidate of a trial's recipe, to be measured on a later split."""
    return Candidate(Recipe.from_json(trial.recipe), split, "finalist")


def named(recipes: Mapping[str, Recipe], role: str, split: str) -> list[Candidate]:
    """Make candidates of recipes by name, all of one role."""
    return [Candidate(recipe, split, role, name) for name, recipe in recipes.items()]
