"""What the campaign puts to work: a recipe to measure, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.recipe import Recipe
from evomerge.search.optimizers import Proposal
from evomerge.study.record import Evaluation, RungProgress


@dataclass(frozen=True)
class Candidate:
    """A recipe to measure on a split, and why: a yardstick, a finalist, or the optimizer's own."""

    recipe: Recipe
    split: str
    role: str
    name: str | None = None
    proposal: Proposal | None = None
    attempt: int = 1
    ticket: int | None = None  # the slot of its marker, once it has one
    climb: RungProgress | None = None  # with rungs: how far up it is

    @property
    def key(self) -> tuple[str, str]:
        """What is looked up before anything is measured: the recipe's digest and the split."""
        return self.recipe.digest, self.split


def finalist(trial: Evaluation, split: str) -> Candidate:
    """A trial's recipe, to measure on a later split."""
    return Candidate(Recipe.from_json(trial.recipe), split, "finalist")


def named(recipes: Mapping[str, Recipe], role: str, split: str) -> list[Candidate]:
    """Yardsticks of one role."""
    return [Candidate(recipe, split, role, name) for name, recipe in recipes.items()]
