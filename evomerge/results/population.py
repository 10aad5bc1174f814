"""The population of a search: its members, their niches, and the items that each solves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.common.plugins import options
from evomerge.judging import finalists
from evomerge.results.results import Results
from evomerge.search.archives import ItemColumns, NicheArchive
from evomerge.search.optimizers.base import REGISTRY
from evomerge.study.record import Evaluation

SHOWN = 40
"""The most members that are shown: the best of a larger population."""
BEST = 15
"""The number of best recipes that stand in for the population of an optimizer without one."""
COLUMNS = 600
"""The most columns of items; of more items, neighbours in order of difficulty share one."""


@dataclass(frozen=True)
class Population:
    """Trials of one search, the best first, every recipe once; those estimated come last.

    Attributes:
        trials: the members.
        kept: True if the optimizer keeps them, False if they are the best of the search.
        size: number of members, those not shown included.
    """

    trials: Sequence[Evaluation]
    kept: bool
    size: int


def population_of(results: Results) -> Population:
    """Find the members that the optimizer kept at its last trial, or else the best recipes.

    A trial's record says which members the optimizer had just before it was told of the trial.
    """
    by_ask = {e.ask: e for e in results.own if not e.failed}
    last = next((e.state for e in reversed(results.own) if e.state.get("members")), {})
    members = [by_ask[ask] for ask in last.get("members", ()) if ask in by_ask]
    if not members:
        ranked = finalists(results.searched, BEST)
        return Population([one.trial for one in ranked], False, len(ranked))
    distinct = list({e.digest: e for e in members}.values())
    distinct.sort(key=lambda e: (e.estimated, -(e.value or 0.0)))
    return Population(distinct[:SHOWN], True, len(distinct))


def state_summary(results: Results) -> dict[str, dict[str, list[float]]]:
    """Collect `coverage` and `entropy`, if the optimizer recorded them: lists `trial`, `value`."""
    found: dict[str, dict[str, list[float]]] = {}
    for e in results.own:
        for name in ("coverage", "entropy"):
            if name in e.state:
                series = found.setdefault(name, {"trial": [], "value": []})
                series["trial"].append(e.number or 0)
                series["value"].append(e.state[name])
    return found


def grid_summary(results: Results) -> dict[str, Any] | None:
    """List the elites of a grid over two measures (MAP-Elites); None for other optimizers.

    Returns:
        `measures`: the two names; `shape`: cells along each; `bounds`: [low, high] of each;
        `cells`: for each elite `place` (two indices), `trial`, `value`.
    """
    by_ask = {e.ask: e for e in results.own}
    last = next((e.state for e in reversed(results.own) if e.state.get("cells")), None)
    if last is None:
        return None
    given = results.study.campaign["optimizer"]
    known = options(REGISTRY.find(given["kind"], "optimizer.kind"))
    shape, bounds = (given.get(name, known[name].default) for name in ("grid", "bounds"))
    return {
        "measures": last["measures"],
        "shape": shape,
        "bounds": bounds,
        "cells": [
            {"place": place, "trial": by_ask[ask].number, "value": by_ask[ask].value}
            for place, ask in zip(last["cells"], last["members"], strict=True)
            if ask in by_ask
        ],
    }


def niche_summary(results: Results, population: Population) -> list[dict[str, Any]]:
    """Share each item's point among the members that solve it, and sum up each member's shares.

    This is M2N2's fitness at α = 1 (see `NicheArchive`), over the number of items: members' shares
    add up to the share of items that anyone solves. Members that were not measured on all items
    are left out.

    Returns:
        for each member, the largest share first: `trial`, `value`, `share`, and `alone`, the part
        of it that comes from items which nobody else solves at all.
    """
    measured = [e for e in population.trials if e.measured]
    if not measured:
        return []
    # 1. gains, shape (members, items); an item is solved by a member above the worst on it
    columns, signs = ItemColumns(), _signs(results)
    rows = np.array([columns.row({t: e.scores[t] for t in signs}, signs) for e in measured])
    solved = rows > rows.min(axis=0)
    # 2. gains on items that a single member solves
    alone = rows * (solved & (solved.sum(axis=0) == 1))
    found = [
        {"trial": e.number, "value": e.value, "share": share, "alone": own}
        for e, share, own in zip(
            measured, _shares(rows, columns), _shares(alone, columns), strict=True
        )
    ]
    return sorted(found, key=lambda one: -one["share"])


def item_summary(results: Results, population: Population, marked: str) -> dict[str, Any]:
    """Tabulate parents and members by the items of the search split.

    Values run from 0, the worst, to 1; of a task whose items are not all 0 or 1, the worst and the
    best that were measured. Within a task the items stand in the order of how well the members do
    on them, the easiest first. Of more than 600 items neighbours share a column, as their mean.

    Args:
        results: of the study.
        population: its members.
        marked: the digest of the recipe whose row is "winner".

    Returns:
        `rows`: for each `name`, `role` ("parent", "member" or "winner") and `estimated`; `tasks`:
        for each `task`, `together` (items to a column) and `values` [rows][columns], null where no
        item was measured.
    """
    # 1. the rows
    parents = [
        e for e in results.evaluations if e.role == "parent" and e.split == "search" and e.measured
    ]
    roles = ["parent"] * len(parents) + [
        "winner" if e.digest == marked else "member" for e in population.trials
    ]
    shown = [*parents, *population.trials]
    # 2. each task's items: values scaled to [0, 1], the easiest for the members first
    signs = _signs(results)
    whole = sum(len(shown[0].scores[task]) for task in signs) if shown else 0
    together = -(-whole // COLUMNS)
    tasks = []
    for task, sign in signs.items():
        values = np.array([e.scores[task] * sign for e in shown]).reshape(len(shown), -1)
        low, high = np.nanmin(values), np.nanmax(values)
        scaled = (values - low) / ((high - low) or 1.0) if high > low else values * 0 + sign * high
        easy = np.argsort(-_mean(scaled[len(parents) :]), kind="stable")
        tasks.append(
            {"task": task, "together": together, "values": _columns(scaled[:, easy], together)}
        )
    rows = [
        {"name": e.name or f"trial {e.number}", "role": role, "estimated": e.estimated}
        for e, role in zip(shown, roles, strict=True)
    ]
    return {"rows": rows, "tasks": tasks}


def _signs(results: Results) -> dict[str, float]:
    """Task of positive weight → −1 where a smaller metric is better, else 1."""
    return {
        task["task"]: 1.0 if task["higher_is_better"] else -1.0
        for task in results.task_notes
        if task["weight"] > 0
    }


def _shares(rows: NDArray[np.float64], columns: ItemColumns) -> list[float]:
    archive = NicheArchive(len(rows))
    for row in rows:
        archive.offer(row, columns.tasks)
    return (archive.fitness() / rows.shape[1]).tolist()


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Column means of the measured values; 0 where nothing was measured."""
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)


def _columns(values: NDArray[np.float64], together: int) -> list[list[float | None]]:
    """Means of `together` neighbouring columns, null where nothing was measured."""
    starts = np.arange(0, values.shape[1], together)
    known = np.isfinite(values)
    sums = np.add.reduceat(np.where(known, values, 0), starts, axis=1)
    counts = np.add.reduceat(known.astype(float), starts, axis=1)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return [[None if np.isnan(v) else round(float(v), 4) for v in row] for row in means]
