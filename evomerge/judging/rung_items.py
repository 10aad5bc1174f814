"""Rungs are growing sets of items, the same for all candidates, each holding the one before.

A rung's items are chosen once parents and baselines (the references) are scored: as many of each
task as its weight deserves, and such that every reference scores on the rung about what it scores
on the whole split. Items that tell the references apart well and badly are in it in their
proportions, so that a mean over the rung estimates the mean over all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.common.errors import InputError
from evomerge.judging.constraints import Items, Values

FEWEST = 2
"""The least number of items of each task: with one there is no standard error."""
STRATA = 4
"""Groups of items by how well they tell the references apart."""


@dataclass(frozen=True)
class Rungs:
    """The items that each rung holds.

    Attributes:
        order: task → places of its items in the study's order, the first rung's first.
        counts: for each rung but the last, task → how many of `order` it holds; the last holds all.
        sizes: task → how many items there are.
        beside: measure → the task beside whose score it is: it has its items, and costs nothing.
    """

    order: Mapping[str, Sequence[int]]
    counts: Sequence[Mapping[str, int]]
    sizes: Mapping[str, int]
    beside: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.counts) + 1

    def places(self, rung: int) -> dict[str, NDArray[np.int64]]:
        """Task → places of the rung's items, ascending."""
        if rung >= len(self.counts):
            return {task: np.arange(size) for task, size in self.sizes.items()}
        counts = self.counts[rung]
        return {task: np.sort(self.order[task][: counts[task]]) for task in self.sizes}

    def new(self, rung: int) -> dict[str, NDArray[np.int64]]:
        """Task → places that the rung holds and the one before does not, ascending."""
        if rung == 0:
            return self.places(0)
        before, now = self.places(rung - 1), self.places(rung)
        found = {task: np.setdiff1d(now[task], before[task]) for task in now}
        return {task: places for task, places in found.items() if len(places)}

    def total(self, rung: int) -> int:
        """Count the rung's items, over all tasks."""
        places = self.places(rung)
        return sum(len(found) for task, found in places.items() if task not in self.beside)

    def with_measures(self, beside: Mapping[str, str]) -> Rungs:
        """Add measures, which have the items of the tasks beside whose scores they are."""
        own = {task: task for task in self.sizes} | dict(beside)
        return Rungs(
            {name: self.order[task] for name, task in own.items()},
            [{name: counts[task] for name, task in own.items()} for counts in self.counts],
            {name: self.sizes[task] for name, task in own.items()},
            beside,
        )

    def to_json(self) -> dict[str, Any]:
        """Give the rungs as plain data, for the study; of the order only what they need."""
        largest = self.counts[-1] if self.counts else {}
        return {
            "order": {t: list(order[: largest.get(t, 0)]) for t, order in self.order.items()},
            "counts": [dict(counts) for counts in self.counts],
            "sizes": dict(self.sizes),
            "beside": dict(self.beside),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rungs:
        """Make the rungs that `to_json` gave."""
        return cls(data["order"], data["counts"], data["sizes"], data["beside"])


def check_rungs(rungs: Sequence[int | str], sizes: Mapping[str, int]) -> None:
    """Check that every rung has room for the tasks, and is smaller than the split.

    Raises:
        InputError: names the key and the way out.
    """
    whole, least = sum(sizes.values()), FEWEST * len(sizes)
    for rung in rungs:
        if isinstance(rung, int) and not least <= rung < whole:
            raise InputError(
                f"fitness.rungs: {rung} must be at least {least} ({FEWEST} items of each task) and "
                f"less than the {whole} items of the search split; change it, or leave it out"
            )


def fix_rungs(
    rungs: Sequence[int | str],
    sizes: Mapping[str, int],
    weights: Mapping[str, float],
    references: Sequence[Items],
) -> Rungs:
    """Choose the items of every rung.

    Args:
        rungs: numbers of items over all tasks, rising; then `all`.
        sizes: task → how many items the search split has.
        weights: task → its weight in the objective, above 0.
        references: parents' and baselines' items on the split.
    """
    # 1. how many items of each task a rung has, each rung on top of the one before
    totals = [rung for rung in rungs if isinstance(rung, int)]
    counts: list[dict[str, int]] = []
    for total in totals:
        before = counts[-1] if counts else dict.fromkeys(sizes, FEWEST)
        counts.append(_shares(total, sizes, weights, before))
    # 2. which items: the first of an order that is representative from its beginning
    order = {
        task: _order(_features([items[task] for items in references], size)).tolist()
        for task, size in sizes.items()
    }
    return Rungs(order, counts, dict(sizes))


def _shares(
    total: int, sizes: Mapping[str, int], weights: Mapping[str, float], before: Mapping[str, int]
) -> dict[str, int]:
    """Deal `total` items out one by one, each to the task that lacks most of its share.

    The smaller rung's items are in the larger one; a task that has no more gives its share away.
    """
    counts = {task: min(sizes[task], before[task]) for task in sizes}
    while sum(counts.values()) < total:
        open_tasks = [task for task in sizes if counts[task] < sizes[task]]
        poorest = min(open_tasks, key=lambda task: (counts[task] + 1) / weights[task])
        counts[poorest] += 1
    return counts


def _features(responses: Sequence[Values], size: int) -> Values:
    """Features that a rung should have in the split's proportions, shape (items, features).

    Every reference's responses in units of their spread, and which of `STRATA` groups an item is
    in by the spread of the references' responses to it.
    """
    if not responses:
        return np.zeros((size, 0))
    table = np.stack(responses, axis=1)
    spread = table.std(axis=0)
    # 1. the responses, scaled so that all references together weigh as much as the groups
    scaled = table / np.where(spread > 0, spread, 1.0) / np.sqrt(len(responses))
    # 2. the groups, as one column of zeros and ones for each
    tells = table.std(axis=1)
    bounds = np.unique(np.quantile(tells, np.arange(1, STRATA) / STRATA))
    group = np.searchsorted(bounds, tells, side="left")
    return np.concatenate([scaled, np.eye(len(bounds) + 1)[group]], axis=1)


def _order(features: Values) -> NDArray[np.int64]:
    """Order items so that the mean over any first few is near the mean over all.

    Greedy herding (Welling 2009): the next item is the one that brings the mean nearest; of
    equals the first, and items stand in the order of their documents' hashes.
    """
    target = features.mean(axis=0)
    left = np.arange(len(features))
    total = np.zeros(features.shape[1])
    chosen: list[int] = []
    while len(left):
        means = (total + features[left]) / (len(chosen) + 1)
        distance = ((means - target) ** 2).sum(axis=1)
        # sums that differ by rounding alone are ties, on every machine
        place = int(np.argmax(distance <= distance.min() * (1 + 1e-9) + 1e-12))
        chosen.append(int(left[place]))
        total = total + features[left[place]]
        left = np.delete(left, place)
    return np.array(chosen, np.int64)
