"""Compares the weights of a recipe that is merged again with those recorded at its export."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from evomerge.materialize.disk.provenance import SOURCES_FILE, Sources, load_sources
from evomerge.materialize.disk.weight_record import Difference, WeightsRecord, difference
from evomerge.methods import find_method
from evomerge.recipe import Recipe


def compare_weights(folder: Path, recipe: Recipe, before: Sources | None) -> str | None:
    """Say whether a new checkpoint has the recorded weights, and if not, by how much and why.

    None where no weights were recorded.
    """
    now = load_sources(folder / SOURCES_FILE)
    if before is None or before.made is None or now.made is None:
        return None
    found = difference(now.made, before.made, folder)
    if found is None:
        return f"the weights are those that were exported, to the bit (digest {now.made.digest})"
    reasons = [*_reasons(recipe, now, before)]
    return f"{_size(found)}; " + (
        f"likely because {', and '.join(reasons)}"
        if reasons
        else "evomerge, torch, CPU and dtype are those of the export, so that this should not be: "
        "please report it"
    )


def _size(found: Difference) -> str:
    count = f"{len(found.tensors)} of {found.of} tensors are not those that were exported"
    if math.isnan(found.largest):
        return f"{count}: they have other names"
    if found.largest == 0:
        return f"{count}, but their values are the same"
    return (
        f"{count}; the largest difference is {found.largest:.1e} of its tensor ({found.where}; "
        "root mean square, known to some 13 %)"
    )


def _reasons(recipe: Recipe, now: Sources, before: Sources) -> Iterator[str]:
    assert now.made is not None
    assert before.made is not None
    if now.weights != before.weights:
        yield f"it is written as {_dtype(now)}, the export as {_dtype(before)}"
    for name in ("evomerge", "torch", "cpu"):
        ours, theirs = getattr(now.made, name), getattr(before.made, name)
        if ours != theirs:
            yield f"{name} is {ours}, there {theirs}"
    wide = sorted({merge.method for merge in recipe.merges if _reads_whole_tensors(merge.method)})
    if wide and (before.made.statistics or _moved(now.made, before.made)):
        kept = ", which the export read from its run's statistics" * before.made.statistics
        yield (
            f"{', '.join(wide)} {'looks' if len(wide) == 1 else 'look'} at whole tensors (sums, "
            f"trims, singular vectors{kept}), and that may round otherwise elsewhere"
        )


def _moved(now: WeightsRecord, before: WeightsRecord) -> bool:
    return (now.torch, now.cpu) != (before.torch, before.cpu)


def _reads_whole_tensors(name: str) -> bool:
    """Say whether a method looks beyond the entries it merges."""
    method = find_method(name, "recipe")
    return not method.elementwise or method.statistic is not None or method.joint is not None


def _dtype(sources: Sources) -> str:
    return "the base is stored" if sources.weights == "checkpoint" else sources.weights
