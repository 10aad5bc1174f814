"""What a merge is: frozen data with a content digest. Plain Python, no torch."""

from evomerge.recipe.recipe import (
    BASE,
    Aim,
    Drop,
    ExpertValues,
    Merge,
    MergeCoefficient,
    Mixture,
    Piece,
    Recipe,
    Slot,
    Sparsifier,
    load_recipe,
)

__all__ = [
    "BASE",
    "Aim",
    "Drop",
    "ExpertValues",
    "Merge",
    "MergeCoefficient",
    "Mixture",
    "Piece",
    "Recipe",
    "Slot",
    "Sparsifier",
    "load_recipe",
]
