"""`evomerge.json`: where the models of a recipe lie, and how those that are merges were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from evomerge.config import Strict
from evomerge.errors import InputError
from evomerge.export.weights import WeightsRecord
from evomerge.recipe import BASE, Recipe, load_recipe

RECIPE_FILE = "recipe.json"
SOURCES_FILE = "evomerge.json"


class Sources(Strict):
    """`evomerge.json`: what `recipe.json` does not hold but merging it again needs.

    `models` is source name → folder or hub id, and `recipes` how those among them that are merges
    were made, for when their folders are gone. `tokenizer` and `chat_template` are `Origin`'s,
    `made` is what came out; the other fields mean what the campaign's do.
    """

    evomerge: str
    models: dict[str, str]
    align: list[str] = Field(default_factory=list)
    allow_pickle: bool
    trust_remote_code: bool
    weights: str
    tokenizer: str = BASE
    chat_template: str | None = None
    recipes: dict[str, Lineage] = Field(default_factory=dict)
    made: WeightsRecord | None = None


class Lineage(Strict):
    """A merge among the sources: its `recipe.json` and its own `evomerge.json`."""

    recipe: dict[str, Any]
    sources: Sources

    def write(self, folder: Path) -> None:
        """Write both files as they stand beside an export."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE_FILE).write_text(recipe_text(Recipe.from_json(self.recipe)), "utf-8")
        (folder / SOURCES_FILE).write_text(sources_text(self.sources), "utf-8")


def lineage_of(folder: Path) -> Lineage | None:
    """How a model was made that evomerge exported; None of any other.

    Without the record of its weights: the recipe that uses it holds their digest.
    """
    if not ((folder / RECIPE_FILE).is_file() and (folder / SOURCES_FILE).is_file()):
        return None
    recipe = load_recipe(folder / RECIPE_FILE)
    sources = load_sources(folder / SOURCES_FILE).model_copy(update={"made": None})
    return Lineage(recipe=recipe.to_json(), sources=sources)


def load_sources(path: Path) -> Sources:
    """Read an export's `evomerge.json`.

    Raises:
        InputError: the file is not what evomerge writes.
    """
    try:
        return Sources.model_validate_json(path.read_bytes())
    except (ValidationError, ValueError) as error:
        raise InputError(f"{path}: not a file that evomerge wrote: {error}") from None


def recipe_text(recipe: Recipe) -> str:
    """The content of `recipe.json`."""
    return json.dumps(recipe.to_json(), indent=2) + "\n"


def sources_text(sources: Sources) -> str:
    """The content of `evomerge.json`."""
    return json.dumps(sources.model_dump(mode="json"), indent=2) + "\n"
