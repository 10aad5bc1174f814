"""Count what a campaign has to do: recipes to merge, items to score, layers to hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from evomerge.campaign.descents import BACKWARD
from evomerge.campaign.initial_points import descents_of
from evomerge.campaign.setup import Setup
from evomerge.config import AUDIT, DescentOptions
from evomerge.materialize.memory.layers import LayerKey, layer_key
from evomerge.materialize.plan import plan
from evomerge.recipe import Recipe
from evomerge.study.record import Descend

_SAMPLES = 32
"""Random recipes that show how long a space's paths are."""


@dataclass(frozen=True)
class Part:
    """Part of the work.

    Attributes:
        merges: recipes to merge.
        items: items to score, in all of them together.
    """

    merges: int
    items: int


@dataclass(frozen=True)
class Work(Part):
    """The work of the whole budget, at most.

    Attributes:
        trials: candidates of the search among the merges.
        first: what comes before the second trial.
    """

    trials: int
    first: Part


def work_of(setup: Setup, trials: int) -> Work:
    """Count parents, defaults and grid, `trials` of the search, the finalists, what is polished,
    and the test.

    With rungs or a budget of items it may be less: how many candidates are stopped is not known.
    """
    fitness, budget = setup.config.fitness, setup.config.budget
    sizes = {split: sum(setup.sizes(split).values()) for split in setup.items}
    audited = sum(map(len, setup.measured_items.get(AUDIT, {}).values()))
    looks = len(setup.space.parents()) + 1 if audited else 0
    references = {
        r.digest for r in (*setup.space.parents().values(), *setup.space.baselines().values())
    }
    grid = {recipe.digest for recipe in setup.grid.values()} - references
    descents = [_descent(one) for one in descents_of(setup.config.initial).values()]
    if budget.items is not None:
        trials = min(trials, math.ceil(budget.items / setup.first_rung))
    if (found := setup.optimizer.descends(trials)) is not None:
        descents.append(_proposed(*found, budget.items))
    searched = trials * sizes["search"] + sum(part.items for part in descents)
    if budget.items is not None:
        searched = min(searched, budget.items)
    before = len(references) + len(grid)
    later = len(references) + bool(grid)
    finalists = min(fitness.select_top, trials)
    polish = setup.config.polish
    ends = min(polish.top, finalists) if polish else 0
    polished = _descent(polish) if polish else Part(0, 0)
    tested = 1 if setup.judge.objective.goals is None else finalists  # about so many on the front
    return Work(
        merges=before
        + sum(part.merges for part in descents)
        + trials
        + (later + finalists)
        + ends * (polished.merges + 2)
        + (later + tested)
        + looks,
        items=before * sizes["search"]
        + searched
        + (later + finalists) * sizes["select"]
        + ends * (polished.items + sizes["search"] + sizes["select"])
        + (later + tested) * sizes["test"]
        + looks * audited,
        trials=trials,
        first=Part(before + 1, before * sizes["search"] + setup.first_rung),
    )


def _descent(config: DescentOptions | Descend) -> Part:
    """Count a gradient descent of all its steps; documents of a backward pass as three."""
    looks = 1 + math.ceil(config.steps / config.check) if config.check else 0
    held = 2 * config.batch  # at most
    return Part(config.steps + 1, BACKWARD * config.batch * config.steps + looks * held)


def _proposed(longest: Descend, times: float, budget: int | None) -> Part:
    """Count so many descents of trials, as far as the budget of items is enough."""
    each = _descent(longest)
    if budget is not None:
        times = min(times, budget / each.items)
    return Part(round(times * each.merges), round(times * each.items))


@dataclass(frozen=True)
class Depths:
    """Layers of the candidates.

    Attributes:
        mean: layers of a candidate, on average.
        deepest: layers of the deepest.
        held: layer → how many sets of its weights stay with a worker.
    """

    mean: float
    deepest: int
    held: Mapping[int, int]


def depths_of(setup: Setup) -> Depths:
    """Count the layers of the space's candidates; where it has paths, of a sample of them."""
    layers = setup.models.layout.layers
    held = dict.fromkeys(range(layers), 1)
    if setup.config.space.path.kind == "none":
        return Depths(layers, layers, held)
    space, rng = setup.space, np.random.default_rng(setup.config.seed)
    genomes = [space.initial, *(rng.random(space.dimension) for _ in range(_SAMPLES))]
    recipes = [space.decode(genome) for genome in genomes]
    for recipe in recipes:
        for layer, count in _distinct(recipe, setup):
            held[layer] = max(held[layer], count)
    lengths = [len(recipe.path) for recipe in recipes]
    return Depths(float(np.mean(lengths)), max(layers, *lengths), held)


def _distinct(recipe: Recipe, setup: Setup) -> Iterator[tuple[int, int]]:
    """Yield each layer that a recipe uses, with how many sets of weights it has there."""
    steps = plan(recipe, setup.models.layout, setup.models.sources)
    inside = [step for step in steps if step.slot is not None]
    kinds: dict[int, list[LayerKey]] = {}
    for index, group in groupby(inside, key=lambda step: step.slot):
        found = kinds.setdefault(recipe.path[index or 0].layer, [])
        key = layer_key(list(group), recipe.seed)
        if key not in found:
            found.append(key)
    return ((layer, len(found)) for layer, found in kinds.items())
