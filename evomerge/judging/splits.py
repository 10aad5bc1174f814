"""Which documents may be seen when: the optimizer's, the selection's, and the test's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.config import SPLITS
from evomerge.errors import InputError


def split_items(
    ids: Sequence[str], splits: Mapping[str, float | int], task: str
) -> dict[str, list[str]]:
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
    room = _counts(len(ids), splits, task)
    dealt: dict[str, list[str]] = {split: [] for split in SPLITS}
    copies: dict[str, list[str]] = {}
    for item in sorted(ids):
        copies.setdefault(item.partition("#")[0], []).append(item)
    for group in copies.values():
        for split in SPLITS:
            if len(group) <= room[split] - len(dealt[split]):
                dealt[split].extend(group)
                break
        else:
            if not _are_counts(splits):  # fractions promise every item a place
                roomiest = max(SPLITS, key=lambda split: room[split] - len(dealt[split]))
                dealt[roomiest].extend(group)
    for split, items in dealt.items():
        if not items:
            raise InputError(
                f"fitness.splits: {split} would be empty: task {task!r} has {len(ids)} items, "
                "too many of them copies of one document to fill three splits"
            )
    return dealt


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
