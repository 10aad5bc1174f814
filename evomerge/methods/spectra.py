"""Spectra: how the magnitudes of a task vector's entries spread, counted once per source.

What is said of |τ| here is true of any `Quantity` that the task vectors decide entry by entry.

A non-negative float32 orders as its bit pattern does. The upper 20 of its 31 bits are counted
(`spectrum`): for any k the counts say in which bracket of about n/4096 entries the k-th largest
lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from evomerge.methods.registry import Tensor, View

SMALL = 1 << 22
"""Entries up to which patterns are sorted, not counted by bin: quicker, but all held at a time."""
_LOW = 11
"""Bits of a pattern below its bin."""
_BINS = 1 << 31 - _LOW
_BRACKETS = 1 << 12
_INFINITE = 0x7F800000
"""The pattern of infinity; those of NaN lie above it."""


@dataclass(frozen=True)
class Quantity:
    """What entries are ranked by: the magnitude of an element-wise function of task vectors.

    Attributes:
        experts: the view's experts that it is about.
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
        """The values in a slice, or at the places of an index tensor."""
        return self.of(self.view.taus(part, self.experts))

    def map(self, function: Callable[..., Any]) -> Iterator[Any]:
        """An element-wise `function(values)`, block by block."""
        return self.view.map(_composed(function, self.of), self.experts)


def task_vector(view: View, expert: int) -> Quantity:
    """One expert's τ."""
    return Quantity(view, (expert,), _only)


def _only(taus: list[Tensor]) -> Tensor:
    return taus[0]


@cache
def _composed(
    function: Callable[..., Any], of: Callable[[list[Tensor]], Tensor]
) -> Callable[..., Any]:
    """`function` of the quantity; one object for each, so that it is compiled once."""

    def of_taus(taus: list[Tensor]) -> Any:
        return function(of(taus))

    return of_taus


@dataclass(frozen=True)
class Spectrum:
    """How an expert's |τ| spread over one tensor: brackets of consecutive bins, the largest first.

    Attributes:
        floors: int64 (b,), the least pattern of each bracket; falling.
        counts: int64 (b,), entries in this bracket and those before it.
        finite: no entry is infinite or NaN.
    """

    floors: np.ndarray
    counts: np.ndarray
    finite: bool

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.floors.nbytes + self.counts.nbytes

    def places(self, values: Tensor) -> np.ndarray:
        """The index of each value's bracket; of what is not finite, the first."""
        patterns = patterns_of(values).cpu().numpy()
        return np.searchsorted(-self.floors, -patterns.astype(np.int64))

    def bracket(self, k: int) -> Bracket:
        """Where the k-th largest |τ| lies (from 1)."""
        place = int(np.searchsorted(self.counts, k))
        above = int(self.counts[place - 1]) if place else 0
        stop = int(self.floors[place - 1]) if place else _INFINITE
        # only a pattern of its own, tied many times, fills more than two brackets' shares
        tied = int(self.counts[place]) - above >= 2 * _share(int(self.counts[-1]))
        return Bracket(int(self.floors[place]), stop, k - above, tied)


def _share(n: int) -> int:
    """Entries of a bracket, when values are spread."""
    return -(-n // _BRACKETS)


class Bracket(NamedTuple):
    """Patterns from `start` up to `stop`; wanted is the `rank`-th largest of their entries.

    Where `tied`, all of these are `start` itself.
    """

    start: int
    stop: int
    rank: int
    tied: bool


def spectrum(view: View, expert: int) -> Spectrum:
    """Count an expert's |τ| by bin; depends on the sources alone."""
    return spectrum_of(task_vector(view, expert))


def spectrum_of(values: Quantity) -> Spectrum:
    """Count a quantity's magnitudes by bin."""
    import torch

    share = _share(values.n)
    if values.n <= SMALL:
        parts = [patterns.cpu().numpy() for patterns in values.map(patterns_of)]
        patterns, entries = np.unique(np.concatenate(parts), return_counts=True)
        floors, entries = patterns[::-1].astype(np.int64), entries[::-1]
        finite = not (floors >= _INFINITE).any()
    else:
        counts = np.zeros(_BINS, dtype=np.int64)
        for bins in values.map(_bins):
            counts += torch.bincount(bins, minlength=_BINS).cpu().numpy()
        light = np.flatnonzero((counts > 0) & (counts <= share))
        exact, tied = _single_patterns(values, np.flatnonzero(counts > share))
        floors = np.concatenate([light << _LOW, exact])
        entries = np.concatenate([counts[light], tied])
        falling = np.argsort(-floors)
        floors, entries = floors[falling], entries[falling]
        finite = not counts[_INFINITE >> _LOW :].any()
    total = entries.cumsum()
    # a bracket ends where another multiple of its share is reached, and before and after many ties
    last = np.diff(total // share, prepend=0) > 0
    last[:-1] |= entries[1:] > share
    last[-1:] = True
    return Spectrum(floors[last], total[last], finite)


def _single_patterns(values: Quantity, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The patterns in full bins, and the entries of each: a few values with many ties, mostly."""
    import torch

    place = torch.full((_BINS,), -1, dtype=torch.int32)
    place[torch.from_numpy(bins)] = torch.arange(len(bins), dtype=torch.int32)
    counts = np.zeros(len(bins) << _LOW, dtype=np.int64)
    for patterns in values.map(patterns_of) if len(bins) else ():
        at = place[patterns.cpu() >> _LOW]
        cells = ((at << _LOW) | (patterns.cpu() & (1 << _LOW) - 1))[at >= 0]
        counts += torch.bincount(cells, minlength=len(counts)).numpy()
    found = np.flatnonzero(counts)
    return bins[found >> _LOW] << _LOW | found & (1 << _LOW) - 1, counts[found]


def patterns_of(tau: Tensor) -> Tensor:
    """Magnitudes in float32 as int32 bit patterns."""
    import torch

    return tau.abs().float().view(torch.int32)


def _bins(tau: Tensor) -> Tensor:
    return patterns_of(tau) >> _LOW
