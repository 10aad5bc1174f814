"""Opened families of tiny models, and recipes with random numbers for any method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tiny
from calibrated_data import calibrate

from evomerge.config import ModelsConfig
from evomerge.methods import methods
from evomerge.methods.core.sparsify_in_recipes import sparsified
from evomerge.models.checks.checked_models import CheckedModels, check_models
from evomerge.recipe import BASE, Merge, Recipe, Slot


def open_family(folder, experts=("math", "lang"), **changes) -> CheckedModels:
    """A base and experts as `tiny.save_family` makes them, opened, with calibration data."""
    paths = tiny.save_family(folder, experts, **changes)
    models = check_models(
        ModelsConfig(base=str(paths[BASE]), experts={name: str(paths[name]) for name in experts})
    )
    calibrate(models, Path(folder) / "statistics")
    return models


def random_recipe(
    models: CheckedModels, name: str, seed: int = 4, layers: Sequence[int] | None = None
) -> Recipe:
    """A method with random numbers outside the layers and on some of them; others are the base's.

    Args:
        layers: all, unless said.
    """
    method, rng = methods()[name], np.random.default_rng(seed)
    drawn = {
        p.name: float(rng.uniform(max(p.low, 0.2), max(p.low, min(p.high, 0.9))))
        for p in method.parameters.values()
        if p.type is float
    }
    each = {k: v for k, v in drawn.items() if method.parameters[k].per_expert}
    every = range(models.layout.layers)
    slots = [(layer, "layer") for layer in (every if layers is None else layers)]
    return Recipe(
        sources={name: source.digest for name, source in models.sources.items()},
        path=tuple(Slot(source=BASE, layer=layer) for layer in every),
        merges=tuple(
            Merge(
                slot=slot,
                group=group,
                method=name,
                experts={e: dict(each) for e in list(models.sources)[1:][: method.experts[1]]},
                parameters={k: v for k, v in drawn.items() if k not in each},
            )
            for slot, group in [*((None, g) for g in models.layout.outside_groups), *slots]
        ),
        seed=9,
    )


def thin(recipe: Recipe, density: float = 0.3, rescale: str = "density", seed: int = 9) -> Recipe:
    """The recipe with a random drop in every merge."""
    return sparse(recipe, "dare", density, seed, rescale=rescale)


def sparse(
    recipe: Recipe, kind: str, density: float = 0.3, seed: int = 9, **options: float | str
) -> Recipe:
    """The recipe with its task vectors made sparse in every merge."""
    return sparsified(recipe, kind, lambda merge: density, options, seed)
