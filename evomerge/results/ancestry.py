"""The origin of a recipe: its ancestors among the trials, and its path through the models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evomerge.recipe import BASE
from evomerge.study.record import POLISHED
from evomerge.study.study import Study

MERGED = "merged"
"""Name of the source of a slot that is merged, not a copy of one model's layer."""


def ancestry_summary(study: Study, trial: int) -> dict[str, Any] | None:
    """Trace the ancestors of a trial; None where the record names no trials that are its parents.

    Returns:
        `trials`: the trial and every ancestor, in the order in which they were asked: `trial`,
        `value`, `estimated`, `generation` (0 for the trial itself, 1 for its parents; the
        shortest of several ways), `parents` (trial numbers).
    """
    # 1. the trials by ask index, in which parents are recorded; the end of a polish has none
    found = study.evaluations()
    own = [e for e in found if e.optimizers_own and e.ask is not None]
    ends = [e for e in found if e.role == POLISHED and e.number == trial]
    by_ask = {e.ask: e for e in (*own, *ends)}
    by_number = {e.number: e for e in (*own, *ends)}
    if trial not in by_number or not any(p in by_ask for p in by_number[trial].parents):
        return None
    # 2. breadth first from the trial: an ancestor is met on its shortest way
    generation = {by_number[trial].ask: 0}
    for ask in (queue := [by_number[trial].ask]):
        for parent in by_ask[ask].parents:
            if parent in by_ask and parent not in generation:
                generation[parent] = generation[ask] + 1
                queue.append(parent)
    return {
        "trials": [
            {
                "trial": by_ask[ask].number,
                "value": by_ask[ask].value,
                "estimated": by_ask[ask].estimated,
                "generation": generation[ask],
                "parents": [by_ask[p].number for p in by_ask[ask].parents if p in by_ask],
            }
            for ask in sorted(generation, key=lambda ask: math.inf if ask is None else ask)
        ]
    }


def path_summary(study: Study, recipe: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """List the path of a recipe, slot by slot; None where it is the base's own layers in order.

    Returns:
        for each slot `source` (a model's name, or "merged"), its `layer`, the `scale` of its input.
    """
    if any(e.recipe["path"] == recipe["path"] for e in study.evaluations() if e.name == BASE):
        return None
    merged = {merge["slot"] for merge in recipe["merges"]}
    return [
        {
            "source": MERGED if place in merged else slot["source"],
            "layer": slot["layer"],
            "scale": slot["scale"],
        }
        for place, slot in enumerate(recipe["path"])
    ]
