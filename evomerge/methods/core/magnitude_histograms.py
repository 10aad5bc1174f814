"""Histograms of magnitudes, counted once a source, tell which bin holds the k-th largest |τ|.

A trim of a candidate asks for the k-th largest magnitude of n entries, and the next candidate for
another k of the same entries. Sorting answers all of them but takes seconds; one histogram per
source says, for every k, in which bin of about n/4096 entries the k-th largest lies, so that a
candidate looks at the entries of that one bin only (`trim`).

Magnitudes are compared as bit patterns: non-negative float32 numbers order as their bits do, read
as integers. The upper 20 of the 31 bits are a *cell*, of which there are 2²⁰ whatever the data; a
*bin* is a run of neighbouring cells, or a single pattern where many entries share it (finetuned
float16 weights differ by few values).

All this holds for any number per entry that the task vectors decide: a `Ranking`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from evomerge.methods.core.view import Tensor, View

SMALL = 1 << 22
"""Entries up to which patterns are sorted, not counted by cell: quicker, but all held at a time."""
_LOW = 11
"""Bits of a pattern below its cell."""
_CELLS = 1 << 31 - _LOW
_BINS = 1 << 12
_ABOVE_ALL = 0x7F800001
"""The pattern after infinity's: that of a NaN."""


@dataclass(frozen=True)
class Ranking:
    """An order of a tensor's entries: by the magnitude of an element-wise function of their τ.

    Attributes:
        experts: the view's experts whose τ the function takes.
        of: from the list of their τ, of one shape, to a tensor of that shape.
    """

    view: View
    experts: tuple[int, ...]
    of: Callable[[list[Tensor]], Tensor]

    @property
    def n(self) -> int:
        """Entries of the tensor."""
        return self.view.base.numel()

    def at(self, part: Any) -> Tensor:
        """Return the function's values in a slice, or at the places of an index tensor."""
        return self.of(self.view.taus(part, self.experts))

    def map(self, function: Callable[..., Any]) -> Iterator[Any]:
        """Call an element-wise `function(values)` block by block."""
        return self.view.map(_composed(function, self.of), self.experts)


def by_magnitude(view: View, expert: int) -> Ranking:
    """Rank entries by one expert's |τ|."""
    return Ranking(view, (expert,), _only)


def _only(taus: list[Tensor]) -> Tensor:
    return taus[0]


@cache
def _composed(
    function: Callable[..., Any], of: Callable[[list[Tensor]], Tensor]
) -> Callable[..., Any]:
    """Make `function` one of a ranking's values; one object for each, so that it compiles once."""

    def of_taus(taus: list[Tensor]) -> Any:
        return function(of(taus))

    return of_taus


@dataclass(frozen=True)
class MagnitudeHistogram:
    """Counts of magnitudes by bin, the bin of the largest first.

    Attributes:
        floors: int64 (b,), the least pattern of each bin; falling.
        counts: int64 (b,), entries in this bin and those before it.
    """

    floors: np.ndarray
    counts: np.ndarray

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.floors.nbytes + self.counts.nbytes

    def bins_of(self, values: Tensor) -> np.ndarray:
        """Return the index of each value's bin, int64 of the shape of `values`."""
        patterns = patterns_of(values).cpu().numpy()
        return np.searchsorted(-self.floors, -patterns.astype(np.int64))

    def bin_of_rank(self, k: int) -> Bin:
        """Return the bin in which the k-th largest magnitude lies (1 ≤ k ≤ n)."""
        place = int(np.searchsorted(self.counts, k))
        before = int(self.counts[place - 1]) if place else 0
        stop = int(self.floors[place - 1]) if place else _ABOVE_ALL
        # a bin of several patterns holds less than two shares: see `histogram_of`
        tied = int(self.counts[place]) - before >= 2 * _share(int(self.counts[-1]))
        return Bin(int(self.floors[place]), stop, k - before, tied)


class Bin(NamedTuple):
    """A bin that is searched: patterns from `start` up to, not including, `stop`.

    Attributes:
        rank: which of the bin's entries is wanted, the largest being 1.
        tied: all entries of the bin have the pattern `start`.
    """

    start: int
    stop: int
    rank: int
    tied: bool


def _share(n: int) -> int:
    """Return how many entries a bin has where values are spread."""
    return -(-n // _BINS)


def magnitude_histogram(view: View, expert: int) -> MagnitudeHistogram:
    """Count an expert's |τ| by bin: a statistic of the sources alone."""
    return histogram_of(by_magnitude(view, expert))


def histogram_of(ranking: Ranking) -> MagnitudeHistogram:
    """Count a ranking's magnitudes by bin, in one pass over the sources (two, if many are tied)."""
    import torch

    share = _share(ranking.n)
    if ranking.n <= SMALL:
        # small tensors: every pattern that occurs, with its count
        parts = [patterns.cpu().numpy() for patterns in ranking.map(patterns_of)]
        patterns, entries = np.unique(np.concatenate(parts), return_counts=True)
        floors, entries = patterns[::-1].astype(np.int64), entries[::-1]
    else:
        # 1. count by cell
        counts = np.zeros(_CELLS, dtype=np.int64)
        for cells in ranking.map(_cells_of):
            counts += torch.bincount(cells, minlength=_CELLS).cpu().numpy()
        # 2. cells with more than a bin's share are counted again, pattern by pattern
        light = np.flatnonzero((counts > 0) & (counts <= share))
        exact, tied = _single_patterns(ranking, np.flatnonzero(counts > share))
        # 3. both together, the largest first
        floors = np.concatenate([light << _LOW, exact])
        entries = np.concatenate([counts[light], tied])
        falling = np.argsort(-floors)
        floors, entries = floors[falling], entries[falling]
    # join neighbours into bins: one ends where another multiple of its share is reached, and
    # before and after a pattern with more than a share, which has a bin of its own
    total = entries.cumsum()
    last = np.diff(total // share, prepend=0) > 0
    last[:-1] |= entries[1:] > share
    last[-1:] = True
    return MagnitudeHistogram(floors[last], total[last])


def _single_patterns(ranking: Ranking, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the patterns within some cells: a few values with many ties, mostly.

    Returns:
        The patterns that occur, int64, and the entries of each, int64.
    """
    import torch

    # a row of 2¹¹ counters for each cell; `row` says which one is whose, -1 for other cells
    row = torch.full((_CELLS,), -1, dtype=torch.int32)
    row[torch.from_numpy(cells)] = torch.arange(len(cells), dtype=torch.int32)
    counts = np.zeros(len(cells) << _LOW, dtype=np.int64)
    for patterns in ranking.map(patterns_of) if len(cells) else ():
        own = row[patterns.cpu() >> _LOW]
        counter = ((own << _LOW) | (patterns.cpu() & (1 << _LOW) - 1))[own >= 0]
        counts += torch.bincount(counter, minlength=len(counts)).numpy()
    found = np.flatnonzero(counts)
    return cells[found >> _LOW] << _LOW | found & (1 << _LOW) - 1, counts[found]


def patterns_of(values: Tensor) -> Tensor:
    """Return magnitudes in float32 as int32 bit patterns."""
    import torch

    return values.abs().float().view(torch.int32)


def _cells_of(values: Tensor) -> Tensor:
    return patterns_of(values) >> _LOW
