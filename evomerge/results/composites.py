"""Composed tasks against the weakest of their parts: what answering all at once costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.judging import Judge, find_objective
from evomerge.judging.intervals import Interval, interval
from evomerge.results.written_numbers import difference, short


def composites(
    tasks: Sequence[Mapping[str, Any]], scores: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Compare a recipe's composed tasks with the weakest of their parts (CrossEval's weakest link).

    Args:
        tasks: the study's note on its tasks.
        scores: task → the recipe's values on a split.

    Returns:
        for each composed task `task`; `composite`: the share of documents with all parts right;
        `inside`: part → its score in the joined prompt; `alone`: part → its score as a task of its
        own, of those that are; `weakest`: the part with the least score alone, or inside where not
        all were asked alone, and `by`: "alone" or "inside"; `difference`, `low`, `high`: composite
        minus that, with the interval of independent documents (MOVER), which is too wide where
        both are of the same ones.
    """
    found = []
    for task in tasks:
        name, parts = task["task"], task.get("composed_of")
        if not parts:
            continue
        inside = {part: _of(scores[f"{name}.{part}"]) for part in parts}
        alone = {part: _of(scores[part]) for part in parts if part in scores}
        by = "alone" if len(alone) == len(parts) else "inside"
        rivals = alone if by == "alone" else inside
        weakest = min(rivals, key=lambda part: rivals[part].value)
        whole, part = _of(scores[name]), rivals[weakest]
        gap = whole.value - part.value
        found.append(
            {
                "task": name,
                "composite": whole.value,
                "inside": {part: one.value for part, one in inside.items()},
                "alone": {part: one.value for part, one in alone.items()},
                "weakest": weakest,
                "by": by,
                "difference": gap,
                "low": gap - math.hypot(whole.value - whole.low, part.high - part.value),
                "high": gap + math.hypot(whole.high - whole.value, part.value - part.low),
            }
        )
    return found


def _of(values: np.ndarray) -> Interval:
    """Give the mean of one task's values with its interval."""
    judge = Judge(find_objective("mean", "report"), ["task"], np.ones(1), np.ones(1))
    return interval(judge, {"task": values})


def composite_line(found: Mapping[str, Any], split: str) -> str:
    """Say in a sentence how far all parts at once stay behind the weakest part."""
    where = "asked alone" if found["by"] == "alone" else "in the same prompt"
    weakest = found[found["by"]][found["weakest"]]
    return (
        f"{found['task']}: all parts right on {short(found['composite'])} of the documents "
        f"({split}); the weakest part {where}, {found['weakest']}, {short(weakest)}: composite "
        f"minus weakest {difference(found)}."
    )
