"""A task-arithmetic recipe over every tensor of a model."""

from evomerge.recipe import BASE, Merge, Recipe, Slot


def recipe_of(models, weight=0.5):
    merges = [
        Merge(
            slot=slot,
            group="layer" if slot is not None else "embeddings",
            method="task_arithmetic",
            experts={"math": {"weight": weight}},
        )
        for slot in (None, *range(models.layout.layers))
    ]
    return Recipe(
        sources={name: source.digest for name, source in models.sources.items()},
        path=[Slot(source=BASE, layer=layer) for layer in range(models.layout.layers)],
        merges=merges,
    )
