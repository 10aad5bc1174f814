"""An export: a checkpoint folder with a card and mergekit's file, or one file alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evomerge.common.errors import InputError
from evomerge.export.card import TaskScore, model_card
from evomerge.export.mergekit_file import mergekit_file, mergekit_text
from evomerge.export.parents import parents_of
from evomerge.materialize.disk.checkpoint import write_merge
from evomerge.materialize.disk.provenance import RECIPE_FILE, MergeInputs, recipe_text
from evomerge.materialize.disk.stream import SHARD_BYTES
from evomerge.mergekit import MergekitFile
from evomerge.recipe import Recipe, load_recipe

Format = Literal["hf", "mergekit", "recipe"]


@dataclass(frozen=True)
class Measured:
    """A recipe's scores for its card and the hub.

    Attributes:
        summary: a table of `Results.best` or `Results.trial`, when it comes from a run.
        commands: the stock lm_eval commands that give its scores on the export.
        scores: its tasks as measured on the test split.
    """

    summary: Mapping[str, Any] | None = None
    commands: Sequence[str] = ()
    scores: Sequence[TaskScore] = ()


def export_recipe(
    recipe: Recipe,
    inputs: MergeInputs,
    to: Path,
    format: Format = "hf",
    shard_bytes: int = SHARD_BYTES,
    measured: Measured = Measured(),
) -> Path:
    """Write a recipe as a checkpoint folder, or as one file: `mergekit` or `recipe`.

    A file that is there already with the same text is left as it is.

    Raises:
        InputError: `to` is taken or cannot be written, the recipe does not fit the models, or
            mergekit cannot express it.
        NonFiniteError: a merged tensor is not finite.
    """
    if format == "recipe":
        return _write_file(to, RECIPE_FILE, recipe_text(recipe))
    if format == "mergekit":
        return _write_file(to, "mergekit.yaml", mergekit_text(mergekit_file(recipe, inputs)))
    try:
        file: MergekitFile | str = mergekit_file(recipe, inputs)
    except InputError as error:
        file = str(error)
    texts = {} if isinstance(file, str) else {"mergekit.yaml": mergekit_text(file)}
    texts["README.md"] = model_card(
        recipe,
        inputs.models.layout,
        to.resolve().name,
        parents_of(recipe, inputs.models),
        file,
        measured.summary,
        measured.commands,
        measured.scores,
    )
    return write_merge(recipe, inputs, to, shard_bytes, texts)


def holds(folder: Path, recipe: Recipe) -> bool:
    """Say whether a folder is the checkpoint of this recipe already."""
    written = folder / RECIPE_FILE
    there = written.is_file() and (folder / "config.json").is_file()
    return there and load_recipe(written).digest == recipe.digest


def _write_file(to: Path, name: str, text: str) -> Path:
    path = to / name if to.is_dir() else to
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        if path.is_file() and path.read_bytes() == text.encode():
            return path
        raise InputError(f"{path}: exists; choose another --to") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    return path
