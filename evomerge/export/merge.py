"""`evomerge merge`: writes a recipe or a mergekit file as a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from evomerge.common.errors import InputError
from evomerge.config import resolve_spec, template_at
from evomerge.export.folder import export_recipe, holds
from evomerge.export.weights_check import compare_with_export
from evomerge.materialize.disk.checkpoint import check_free
from evomerge.materialize.disk.provenance import NO_TRUST, MergeInputs, Trust
from evomerge.materialize.disk.recipe_models import (
    check_given,
    open_inputs,
    open_recipe,
    resolved,
)
from evomerge.materialize.disk.stream import SHARD_BYTES
from evomerge.mergekit import MergekitMerge, load_stages
from evomerge.methods.core.calibration_in_recipes import with_calibration
from evomerge.models.checks.digests import calibration_digests
from evomerge.models.tokens.chat_templates import template_text
from evomerge.recipe import Recipe


def merge_file(
    path: Path,
    to: Path,
    given: Mapping[str, str],
    weights: str | None,
    shard_bytes: int = SHARD_BYTES,
    trust: Trust = NO_TRUST,
    statistics: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Path, Sequence[str]]:
    """Merge a file's recipe, or a mergekit file's stages, into a new checkpoint folder.

    Where a recipe's weights were recorded when it was exported, the result is compared with them.

    The stages of a mergekit file are merged beside it, into `<to>-stages`, and stay there: they
    are the models of what is merged of them. One that is there already is not merged again.

    Args:
        path: a recipe (`.json`), or a mergekit file (`.yaml`, `.yml`).
        given: source name → folder or hub id, before what the file, or the `evomerge.json` beside
            a recipe, says.
        weights: the dtype of the result, before what these say.
        trust: what may be opened. A file that needs more is refused: whoever wrote it is not who
            merges it.
        statistics: source name → calibration file, before what `evomerge.json` says.

    Returns:
        The folder, and notes for the user, one line each.

    Raises:
        InputError: a file or a model cannot be used, or the models are not the recipe's.
        NonFiniteError: a merged tensor is not finite.
    """
    if path.suffix in (".yaml", ".yml"):
        with _named_by(path):
            stages = load_stages(path)
            return _merge_stages(stages, path, to, given, weights, shard_bytes, trust, statistics)
    recipe, inputs, before = open_recipe(path, given, weights, trust, statistics)
    with _named_by(path):
        folder = export_recipe(recipe, inputs, to, shard_bytes=shard_bytes)
    told = compare_with_export(folder, recipe, before)
    return folder, [*inputs.models.notes, *([told] if told else [])]


@contextmanager
def _named_by(path: Path) -> Iterator[None]:
    """Name the file in what is said of its recipe."""
    try:
        yield
    except InputError as error:
        if not str(error).startswith("recipe: "):
            raise
        raise InputError(f"{path}: {str(error).removeprefix('recipe: ')}") from None


def _merge_stages(
    stages: Sequence[MergekitMerge],
    path: Path,
    to: Path,
    given: Mapping[str, str],
    weights: str | None,
    shard_bytes: int,
    trust: Trust,
    statistics: Mapping[str, str],
) -> tuple[Path, Sequence[str]]:
    names = dict.fromkeys(n for stage in stages for n in stage.models)
    check_given(given, names, path)
    check_given(statistics, names, path, "--statistics")
    to = check_free(to)
    folder = to.with_name(f"{to.name}-stages")
    made: dict[str | None, Path] = {}
    notes: dict[str, None] = {}
    for number, stage in enumerate(stages, 1):
        last = stage is stages[-1]
        place = to if last else folder / f"{number}-{_slug(stage.name or '')}"
        own = {name: file for name, file in statistics.items() if name in stage.models}
        recipe, inputs = _stage(stage, path, given, made, weights if last else None, trust, own)
        notes |= dict.fromkeys([*inputs.models.notes, *stage.notes])
        if last or not holds(place, recipe):
            export_recipe(recipe, inputs, place, shard_bytes=shard_bytes)
        made[stage.name] = place
    if len(stages) > 1:
        notes[f"the stages are in {folder}; the result's recipe is over them"] = None
    return to, list(notes)


def _stage(
    merge: MergekitMerge,
    path: Path,
    given: Mapping[str, str],
    made: Mapping[str | None, Path],
    weights: str | None,
    trust: Trust,
    statistics: Mapping[str, str],
) -> tuple[Recipe, MergeInputs]:
    """Open a stage's models and make its recipe.

    A stage names its models by path: an earlier stage, else from the file's own folder, else from
    the current one.
    """
    folder = path.parent.resolve()
    places = {}
    for name, spec in merge.models.items():
        if spec in made:
            places[name] = str(made[spec])
            continue
        beside = resolve_spec(spec, folder)
        places[name] = beside if Path(beside).exists() else resolve_spec(spec, Path.cwd())
    own = {
        name: spec for name, spec in given.items() if merge.models.get(name) not in (None, *made)
    }
    specs = {**places, **resolved(own)}
    inputs = open_inputs(
        specs,
        path,
        weights or merge.weights,
        trust,
        vocabulary=merge.tokenizer,
        statistics=resolved(statistics),
    )
    said = template_at(merge.chat_template, folder)
    template = template_text(said, inputs.models.sources.values(), trust.remote_code)
    digests = {name: source.digest for name, source in inputs.models.sources.items()}
    recipe = merge.recipe(inputs.models.layout, digests)
    recipe = with_calibration(recipe, calibration_digests(inputs.models.sources))
    return recipe, replace(inputs, chat_template=template)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")
