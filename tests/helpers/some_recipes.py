"""A point of a weight space over any models, as a recipe."""

from __future__ import annotations

import torch

from evomerge.config import SpaceConfig
from evomerge.methods import methods
from evomerge.search.spaces.weights import WeightSpace


def space_of(models, method="ties", **weights):
    most = methods()[method].experts[1]
    names = list(models.sources)[: None if most is None else most + 1]
    digests = {name: models.sources[name].digest for name in names}
    parameters = methods()[method].parameters.values()
    searched = [p for p in parameters if p.type is float]
    searched = [p for p in searched if p.name == "weight"] or searched
    genes = {p.name: [max(p.low, 0), min(p.high, 1.5)] for p in searched}
    config = SpaceConfig(weights={"method": method, "genes": genes, **weights})
    return WeightSpace(config, models.layout, digests, seed=3)


def some_recipe(models, method="ties", **weights):
    space = space_of(models, method, **weights)
    generator = torch.Generator().manual_seed(5)
    return space.decode(torch.rand(space.dimension, generator=generator).double().numpy())
