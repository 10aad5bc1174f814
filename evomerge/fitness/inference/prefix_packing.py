"""Pack rows of tokens that begin alike, so that what they share is computed once.

A pack is a prefix tree of rows, laid out depth first in one row of tokens. A token sees those
before it on its own branch only, and stands at its depth, so that every row is read as if it were
alone: the five examples before a question once for its four choices, and once for many questions
that have the same examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Pack:
    """A prefix tree of rows.

    Attributes:
        tokens: int32 [length], depth first.
        depths: int32 [length], each token's position in its rows.
        ends: int32 [length]: token i is seen by the tokens at i … ends[i] − 1.
        paths: row → the places of its tokens in the pack, int32 [tokens of the row].
    """

    tokens: Tokens
    depths: Tokens
    ends: Tokens
    paths: Mapping[int, Tokens]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def branches(self) -> bool:
        """True where there is more than one branch, so that it needs a mask of its own."""
        return bool((self.ends < len(self)).any())


def pack_rows(rows: Mapping[int, Tokens], limit: int, worth: float) -> list[Pack]:
    """Pack rows by their common beginnings.

    A row joins the pack of the row that sorts before it if that saves work: the shared tokens,
    each worth `worth` entries of attention, against the entries (tokens of the pack squared) that
    a longer pack has in vain.

    Args:
        rows: row → its tokens, at least one each.
        limit: most tokens of a pack; a longer row has one of its own. 0 packs every row alone.
        worth: how many entries of the attention one token's other arithmetic costs.
    """
    # Big-endian bytes sort as the numbers do, and a row right after its own beginning.
    order = sorted(rows, key=lambda row: rows[row].astype(">i4").tobytes())
    packs: list[_Growing] = []
    before: Tokens = np.zeros(0, dtype=np.int32)
    for row in order:
        # No row has more in common with this one than the row that sorts before it.
        tokens = rows[row]
        shared = _common(before, tokens)
        # It joins that row's pack if that saves work, or begins another.
        if not (packs and packs[-1].gains(shared, len(tokens), limit, worth)):
            packs.append(_Growing())
            shared = 0
        packs[-1].add(row, tokens, shared)
        before = tokens
    return [growing.done() for growing in packs]


def by_length(packs: Sequence[Pack], budget: int) -> Iterator[list[Pack]]:
    """Yield batches of packs of about one length, of at most `budget` tokens, padding included.

    Packs with branches come apart from those without, which need no mask. The longest come first.
    """
    ordered = sorted(packs, key=lambda pack: (not pack.branches, -len(pack)))
    batch: list[Pack] = []
    for pack in ordered:
        full = batch and (len(batch) + 1) * len(batch[0]) > budget
        if full or (batch and batch[0].branches != pack.branches):
            yield batch
            batch = []
        batch.append(pack)
    if batch:
        yield batch


class _Growing:
    """A pack to which rows are added in their order."""

    def __init__(self) -> None:
        self._tokens, self._depths, self._ends, self._last = np.zeros((4, 0), dtype=np.int32)
        self._paths: dict[int, Tokens] = {}  # `_last` is that of the row added last

    def gains(self, shared: int, length: int, limit: int, worth: float) -> bool:
        """Say whether a row joins: what sharing is worth, against the attention wasted."""
        now = len(self._tokens)
        longer = now + length - shared
        wasted = longer**2 - now**2 - length**2
        return shared > 0 and longer <= limit and wasted <= worth * shared

    def add(self, row: int, tokens: Tokens, shared: int) -> None:
        """Add a row that has its first `shared` tokens in common with the row added last."""
        # 1. The last row's own branch ends here: no later token sees it.
        now = len(self._tokens)
        self._ends[self._last[shared:]] = now
        # 2. The rest of this row is a new branch, behind everything, at its depths.
        self._tokens = np.concatenate([self._tokens, tokens[shared:]])
        self._depths = np.concatenate(
            [self._depths, np.arange(shared, len(tokens), dtype=np.int32)]
        )
        longer = len(self._tokens)
        self._ends = np.concatenate([self._ends, np.zeros(longer - now, dtype=np.int32)])
        # 3. The row's path is the shared beginning, and the branch.
        places = np.arange(now, longer, dtype=np.int32)
        self._last = self._paths[row] = np.concatenate([self._last[:shared], places])

    def done(self) -> Pack:
        """The pack; the last row, which nothing ended, is seen to the end."""
        self._ends[self._last] = len(self._tokens)
        return Pack(self._tokens, self._depths, self._ends, self._paths)


def _common(one: Tokens, other: Tokens) -> int:
    """Count the tokens with which two rows begin alike."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
