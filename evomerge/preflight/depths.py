"""How many layers candidates have, and how many a worker holds for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from evomerge.campaign.setup import Setup
from evomerge.materialize.memory.layers import WeightKey, weight_key
from evomerge.materialize.plan import plan
from evomerge.recipe import Recipe

_SAMPLES = 32
"""Random recipes that show what a space of paths comes to."""


@dataclass(frozen=True)
class Depths:
    """Attributes:
    mean: layers of a candidate.
    deepest: of any.
    held: layer → how many sets of weights of it stay with a worker.
    """

    mean: float
    deepest: int
    held: Mapping[int, int]


def depths_of(setup: Setup) -> Depths:
    """Of the space's candidates; where it has paths, of a sample."""
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
    """Each layer that a recipe uses, and of how many kinds its weights are there."""
    steps = plan(recipe, setup.models.layout, setup.models.sources)
    inside = [step for step in steps if step.slot is not None]
    kinds: dict[int, list[WeightKey]] = {}
    for index, group in groupby(inside, key=lambda step: step.slot):
        found = kinds.setdefault(recipe.path[index or 0].layer, [])
        key = weight_key(list(group), recipe.seed)
        if key not in found:
            found.append(key)
    return ((layer, len(found)) for layer, found in kinds.items())
