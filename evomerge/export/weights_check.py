"""Compares the weights of a new checkpoint with those exported or scored before, and says why.

Weights that differ are told of, not refused: on another machine, device or version they may differ
by rounding, and the checkpoint is as good. Why they do is then said; where no reason is found, that
is a fault of ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.materialize.disk.provenance import SOURCES_FILE, Sources, load_sources
from evomerge.materialize.disk.weight_record import (
    Difference,
    WeightsRecord,
    difference,
    record_weights,
)
from evomerge.methods import find_method
from evomerge.recipe import Recipe


def compare_with_export(folder: Path, recipe: Recipe, before: Sources | None) -> str | None:
    """Say whether a new checkpoint has the recorded weights, and if not, by how much and why.

    None where no weights were recorded.
    """
    now = load_sources(folder / SOURCES_FILE)
    if before is None or before.made is None or now.made is None:
        return None
    found = difference(now.made, before.made, folder)
    if found is None:
        return f"the weights are those that were exported, to the bit (digest {now.made.digest})"
    dtypes = () if now.weights == before.weights else (_of_dtypes(now, before),)
    reasons = [*dtypes, *_reasons(recipe, now.made, before.made)]
    return _told(found, reasons, "exported")


def compare_with_scored(
    folder: Path, recipe: Recipe, scored: Mapping[str, Any]
) -> tuple[bool, str]:
    """Compare a new checkpoint with the record of the weights that were scored.

    Returns:
        Whether they are the same to the bit, and what to tell the user: how much they differ, and
        why.
    """
    before = WeightsRecord.model_validate(scored)
    now = record_weights(
        folder,
        recipe,
        statistics=before.statistics,
        only=before.tensors,
        rounded_to=before.rounded_to,
    )
    found = difference(now, before, folder)
    if found is None:
        return True, f"the weights are those that were scored, to the bit (digest {now.digest})"
    return False, _told(found, [*_reasons(recipe, now, before)], "scored")


def doubt_unrecorded(recipe: Recipe) -> str | None:
    """Say why weights of which no record was kept may not be those that were scored.

    None where nothing gave the recipe's methods other bytes since.
    """
    reasons = [*_changes(recipe, {})]
    if not reasons:
        return None
    return (
        "the study has no record of the weights that it scored, and these may differ from them by "
        f"rounding: {'; '.join(reasons)}"
    )


def _told(found: Difference, reasons: list[str], past: str) -> str:
    return f"{_size(found, past)}; " + (
        f"likely because {', and '.join(reasons)}"
        if reasons
        else f"evomerge, torch, CPU and dtype are those with which they were {past}, so that this "
        "should not be: please report it"
    )


def _size(found: Difference, past: str) -> str:
    count = f"{len(found.tensors)} of {found.of} tensors are not those that were {past}"
    if math.isnan(found.largest):
        return f"{count}: they have other names"
    if found.largest == 0:
        return f"{count}, but their values are the same"
    return (
        f"{count}; the largest difference is {found.largest:.1e} of its tensor ({found.where}; "
        "root mean square, known to some 13 %)"
    )


def _reasons(recipe: Recipe, now: WeightsRecord, before: WeightsRecord) -> Iterator[str]:
    """Say how the making of two checkpoints of one recipe differed."""
    yield from _changes(recipe, before.methods)
    moved = False
    for name in ("evomerge", "torch", "cpu", "processor", "device"):
        ours, theirs = getattr(now, name), getattr(before, name)
        if ours != theirs and theirs is not None:  # not every record names the processor
            moved = moved or name != "evomerge"
            yield f"{name} is {ours}, there {theirs}"
    wide = sorted({merge.method for merge in recipe.merges if _reads_whole_tensors(merge.method)})
    if wide and (before.statistics or moved):
        kept = ", read there from the run's statistics" * before.statistics
        yield (
            f"{', '.join(wide)} {'looks' if len(wide) == 1 else 'look'} at whole tensors (sums, "
            f"trims, singular vectors{kept}), and that may round otherwise elsewhere"
        )


def _changes(recipe: Recipe, versions: Mapping[str, int]) -> Iterator[str]:
    """Say why methods have other bytes than in these versions; 1 of those that have none."""
    for name in sorted({merge.method for merge in recipe.merges}):
        for why in find_method(name, "recipe").changes[versions.get(name, 1) - 1 :]:
            yield f"{name} is not what it was: {why}"


def _reads_whole_tensors(name: str) -> bool:
    """Say whether a method looks beyond the entries it merges."""
    method = find_method(name, "recipe")
    return not method.elementwise or method.statistic is not None or method.joint is not None


def _of_dtypes(now: Sources, before: Sources) -> str:
    return f"it is written as {_dtype(now)}, the export as {_dtype(before)}"


def _dtype(sources: Sources) -> str:
    return "the base is stored" if sources.weights == "checkpoint" else sources.weights
