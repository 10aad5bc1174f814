"""The splits: which documents the optimizer sees, which choose the winner, which test it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evomerge.common.errors import InputError
from evomerge.config import SPLITS

Marks = Mapping[str, Collection[str]]
"""A task's items, each with what tells its document apart beside the hash in its id: a text for
people, "#" and a digest.
"""
Dealt = dict[str, list[str]]
"""split → item ids."""


@dataclass(frozen=True)
class Shared:
    """Documents that two tasks have in common.

    Attributes:
        tasks: their names.
        count: number of documents.
        example: the text of one of them, or the beginning of its hash.
    """

    tasks: tuple[str, str]
    count: int
    example: str

    def __str__(self) -> str:
        a, b = self.tasks
        documents = "1 document" if self.count == 1 else f"{self.count} documents"
        return f"{a!r} and {b!r} share {documents} (for example {self.example!r})"


def deal(
    tasks: Mapping[str, Marks], splits: Mapping[str, float | int]
) -> tuple[dict[str, Dealt], list[Shared]]:
    """Deal out the items of all tasks so that no document is in two splits.

    Every task is dealt out by itself, as by `split_items`. Only where a document would be searched
    on in one task, and selected or tested on in another, all are dealt out again, the smallest task
    first: in later ones its documents stay in the splits that they are in. Counts are exact as
    long as documents that are not shared can make up for those that are; fractions give way then.

    Two items of different tasks are one document when their hashes are equal, or when they have a
    mark that no second document of either task has.

    Args:
        tasks: task → its items with their marks.
        splits: fractions that add up to 1, or counts.

    Returns:
        task → its splits; and what made it necessary to deal again, empty if nothing did.

    Raises:
        InputError: a split would be empty, or counts cannot be had without a document in two.
    """
    # 1. every task by itself; done, unless a document is in two splits
    alone = {task: split_items(list(items), splits, task) for task, items in tasks.items()}
    documents = documents_of(tasks)
    shared = _shared_across_splits(alone, documents, tasks)
    if not shared:
        return alone, []
    # 2. all again, the smallest task first: documents stay in the split they are in
    homes: dict[str, str] = {}
    together: dict[str, Dealt] = {}
    for task in sorted(tasks, key=lambda task: len(tasks[task])):
        room = _counts(len(tasks[task]), splits, task)
        together[task] = _deal(list(tasks[task]), room, splits, documents[task], homes)
        least = {s: len(v) if _are_counts(splits) else 1 for s, v in alone[task].items()}
        _check_filled(task, together[task], least, shared)
        for split, items in together[task].items():
            homes |= {documents[task][item]: split for item in items}
    return {task: together[task] for task in tasks}, shared


def split_items(ids: Sequence[str], splits: Mapping[str, float | int], task: str) -> Dealt:
    """Deal a task's items out to the splits, each split in the order of the documents' hashes.

    The rank of a document is that of its hash, so that neither seeds nor other tasks move it.
    Copies of one document (`hash`, `hash#2`, …) go to one split together; while that is possible
    the counts are exact.

    Args:
        ids: item ids, `<hash>` or `<hash>#<copy>`.
        splits: fractions that add up to 1 (of all items), or counts.
        task: for messages.

    Returns:
        split → item ids; disjoint.

    Raises:
        InputError: a split would be empty, or more items are asked for than there are.
    """
    dealt = _deal(ids, _counts(len(ids), splits, task), splits, {}, {})
    for split, items in dealt.items():
        if not items:
            raise InputError(
                f"fitness.splits: {split} would be empty: task {task!r} has {len(ids)} items, "
                "too many of them copies of one document to fill three splits"
            )
    return dealt


def _deal(
    ids: Sequence[str],
    room: Mapping[str, int],
    splits: Mapping[str, float | int],
    documents: Mapping[str, str],
    homes: Mapping[str, str],
) -> Dealt:
    """Deal one task's items, document by document; those with a home in a split go there first.

    Args:
        room: split → how many items it is to have.
        documents: item → its document; by default, the hash in its id.
    """
    # 1. a document's items together, in the order of its hash
    dealt: Dealt = {split: [] for split in SPLITS}
    groups: dict[str, list[str]] = {}
    for item in sorted(ids):
        groups.setdefault(documents.get(item, _hash(item)), []).append(item)
    # 2. each to the first split with room for all of it
    for document in sorted(groups, key=lambda document: document not in homes):
        group, home = groups[document], homes.get(document)
        left = {split: room[split] - len(dealt[split]) for split in SPLITS}
        fitting = [s for s in ([home] if home else SPLITS) if len(group) <= left[s]]
        if fitting:
            dealt[fitting[0]].extend(group)
        elif not _are_counts(splits):  # fractions promise every item a place
            dealt[home or max(SPLITS, key=lambda split: left[split])].extend(group)
    return {split: sorted(items) for split, items in dealt.items()}


def _hash(item: str) -> str:
    return item.partition("#")[0]


def documents_of(tasks: Mapping[str, Marks]) -> dict[str, dict[str, str]]:
    """Return task → item → a name of its document, equal in every task that has it.

    It is the least of the hashes under which the document is found.
    """
    places = list(dict.fromkeys((t, _hash(item)) for t, items in tasks.items() for item in items))
    place_of = {key: place for place, key in enumerate(places)}
    # 1. mark → the documents that have it, one of each task: shared marks in a task tell nothing
    holders: dict[str, list[int]] = {}
    for task, items in tasks.items():
        found: dict[str, set[int]] = {}
        for item, marks in items.items():
            for mark in (_hash(item), *marks):
                found.setdefault(mark, set()).add(place_of[task, _hash(item)])
        for mark, here in found.items():
            if len(here) == 1:
                holders.setdefault(mark, []).extend(here)
    # 2. documents tied by marks are one: connected components of the graph of ties
    same = [(held[0], other) for held in holders.values() for other in held[1:]]
    rows, columns = np.array(same, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(same)), (rows, columns)), shape=(len(places), len(places)))
    _, parts = connected_components(graph, directed=False)
    # 3. each component is named after its least hash
    names: dict[int, str] = {}
    for part, (_, name) in zip(parts.tolist(), places, strict=True):
        names[part] = min(name, names.get(part, name))
    return {
        task: {item: names[int(parts[place_of[task, _hash(item)]])] for item in items}
        for task, items in tasks.items()
    }


def _shared_across_splits(
    dealt: Mapping[str, Dealt],
    documents: Mapping[str, Mapping[str, str]],
    tasks: Mapping[str, Marks],
) -> list[Shared]:
    """For every two tasks with one document in two splits, the documents they share."""
    homes = {
        task: {documents[task][item]: split for split, items in found.items() for item in items}
        for task, found in dealt.items()
    }
    crossing = [
        (a, b)
        for a, b in combinations(homes, 2)
        if any(homes[b].get(document, split) != split for document, split in homes[a].items())
    ]
    return [_shared(a, b, documents, tasks) for a, b in crossing]


def _shared(
    a: str, b: str, documents: Mapping[str, Mapping[str, str]], tasks: Mapping[str, Marks]
) -> Shared:
    ours, theirs = ({document: item for item, document in documents[t].items()} for t in (a, b))
    common = sorted(ours.keys() & theirs.keys())
    items = ours[common[0]], theirs[common[0]]
    both = (mark for mark in tasks[a][items[0]] if mark in tasks[b][items[1]])
    example = next(both, f"{common[0][:12]}#").rpartition("#")[0]
    return Shared((a, b), len(common), example)


def _check_filled(
    task: str, dealt: Dealt, least: Mapping[str, int], shared: Sequence[Shared]
) -> None:
    """Refuse splits that shared documents leave too small."""
    for split, items in dealt.items():
        if len(items) < least[split]:
            why = "; ".join(str(found) for found in shared if task in found.tasks)
            raise InputError(
                f"fitness.tasks: {why}. A document searched on in one task must not be tested on "
                f"in another; each kept in one split, they leave {split} of {task!r} with "
                f"{len(items)} items, and {least[split]} are needed: leave one of the tasks out, "
                "or ask for fewer in fitness.splits"
            )


def _counts(total: int, splits: Mapping[str, float | int], task: str) -> dict[str, int]:
    """Whole numbers of items: fractions by largest remainder, so that they add up to the total."""
    if _are_counts(splits):
        counts = {split: int(splits[split]) for split in SPLITS}
        if sum(counts.values()) > total:
            raise InputError(
                f"fitness.splits: asks for {sum(counts.values())} items of each task, "
                f"but {task!r} has {total}"
            )
        return counts
    exact = {split: splits[split] * total for split in SPLITS}
    counts = {split: int(exact[split] + 1e-9) for split in SPLITS}
    by_remainder = sorted(SPLITS, key=lambda split: counts[split] - exact[split])
    for split in by_remainder[: total - sum(counts.values())]:
        counts[split] += 1
    for split, count in counts.items():
        if count == 0:
            raise InputError(
                f"fitness.splits: {split} would be empty: {splits[split]:g} of the {total} items "
                f"of task {task!r} is less than one"
            )
    return counts


def _are_counts(splits: Mapping[str, float | int]) -> bool:
    return all(isinstance(splits[split], int) for split in SPLITS)
