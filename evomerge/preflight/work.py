"""How much a campaign has to do: recipes to merge, items to score."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evomerge.campaign.setup import Setup


@dataclass(frozen=True)
class Part:
    """So many merges, and so many items scored in all of them."""

    merges: int
    items: int


@dataclass(frozen=True)
class Work(Part):
    """The whole budget, at most.

    Attributes:
        trials: candidates of the search among the merges.
        first: what comes before the second trial.
    """

    trials: int
    first: Part


def work_of(setup: Setup, trials: int) -> Work:
    """Parents, defaults and grid, `trials` of the search, the finalists, and the test.

    With rungs or a budget of items it may be less: how many candidates are stopped is not known.
    """
    fitness, budget = setup.config.fitness, setup.config.budget
    sizes = {split: sum(setup.sizes(split).values()) for split in setup.items}
    yardsticks = {
        r.digest for r in (*setup.space.parents().values(), *setup.space.baselines().values())
    }
    grid = {recipe.digest for recipe in setup.grid().values()} - yardsticks
    searched = trials * sizes["search"]
    if budget.items is not None:
        trials = min(trials, math.ceil(budget.items / setup.first_rung))
        searched = min(searched, budget.items)
    before = len(yardsticks) + len(grid)
    later = len(yardsticks) + bool(grid)
    finalists = min(fitness.select_top, trials)
    return Work(
        merges=before + trials + (later + finalists) + (later + 1),
        items=before * sizes["search"]
        + searched
        + (later + finalists) * sizes["select"]
        + (later + 1) * sizes["test"],
        trials=trials,
        first=Part(before + 1, before * sizes["search"] + setup.first_rung),
    )
