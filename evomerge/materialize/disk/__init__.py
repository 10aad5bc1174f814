"""Checkpoints on disk: streamed weights, their provenance, and recipes given as models."""

from evomerge.materialize.disk.checkpoint import write_checkpoint, write_merge
from evomerge.materialize.disk.provenance import MergeInputs, Provenance, Sources
from evomerge.materialize.disk.recipe_models import open_recipe, with_recipes_made

__all__ = [
    "MergeInputs",
    "Provenance",
    "Sources",
    "open_recipe",
    "with_recipes_made",
    "write_checkpoint",
    "write_merge",
]
