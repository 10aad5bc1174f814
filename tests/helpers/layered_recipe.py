"""A recipe whose merges differ by layer."""

from __future__ import annotations

from evomerge.recipe import Merge, Recipe, Slot


def recipe_of(method="ties", parameters=None, layers=5):
    merges = [
        Merge(slot=slot, group=group, method=method, experts={"a": {}}, parameters=parameters or {})
        for slot, group in [(None, "embeddings"), *((i, "layer") for i in range(layers))]
    ]
    return Recipe(
        sources={"base": "0", "a": "1"},
        path=tuple(Slot(source="base", layer=i) for i in range(layers)),
        merges=tuple(merges),
    )
