"""Trims by magnitude: the k largest |τ| of a task vector, exactly, of tied ones the lower indices.

What is said of |τ| here is true of any `Quantity` that the task vectors decide entry by entry.

A non-negative float32 orders as its bit pattern does. The upper 20 of its 31 bits are counted once
per source (`spectrum`): for any k the counts say in which bracket of about n/4096 entries the k-th
largest lies. A candidate then looks at the entries of that one bracket only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from evomerge.methods.registry import Tensor, View

_LOW = 11
"""Bits of a pattern below its bin."""
_BINS = 1 << 31 - _LOW
_BRACKETS = 1 << 12
_ROW = 64
"""Entries that a search counts together: a mask entry by entry would cost more than the sums."""
_SMALL = 1 << 22
"""Entries up to which patterns are sorted, not counted by bin: quicker, but all held at a time."""
_INFINITE = 0x7F800000
"""The pattern of infinity; those of NaN lie above it."""


class Trim(NamedTuple):
    """Which entries of a task vector are its k largest by |τ| in float32.

    Kept are the entries above `threshold`, float32 (), and those equal to it up to index `last`,
    int64 (): of tied entries the lower index comes first.
    """

    threshold: Tensor
    last: Tensor

    def keep(self, tau: Tensor, start: Tensor | int) -> Tensor:
        """Boolean mask over a slice of at most 2³¹ entries that begins at flat index `start`.

        NaN is kept, so that it is seen in the result.
        """
        import torch

        magnitude = tau.abs().float()
        index = torch.arange(tau.numel(), dtype=torch.int32, device=tau.device).view(tau.shape)
        last = (self.last - start).clamp(-1, (1 << 31) - 1).to(torch.int32)
        return ~(magnitude <= self.threshold) | ((magnitude == self.threshold) & (index <= last))


class Band(NamedTuple):
    """The entries that `lower` keeps and `upper` does not: a band of ranks."""

    upper: Trim
    lower: Trim

    def keep(self, tau: Tensor, start: Tensor | int) -> Tensor:
        """Boolean mask over a slice, as `Trim.keep`; NaN is kept."""
        return self.lower.keep(tau, start) & (~self.upper.keep(tau, start) | tau.isnan())


@dataclass(frozen=True)
class Quantity:
    """What entries are ranked by: the magnitude of an element-wise function of task vectors.

    Attributes:
        experts: the view's experts whose task vectors the function gets.
        of: from a list of their τ, of one shape, to a tensor of that shape.
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
        return self.of(self._view.taus(part))

    def map(self, function: Callable[..., Any], *rest: Tensor) -> Iterator[Any]:
        """An element-wise `function(values, *rest)`, block by block."""
        return self._view.map_all(_composed(function, self.of), *rest)

    def head(self, n: int) -> Quantity:
        """The same of the first `n` entries."""
        view, experts = self.view, [expert[:n] for expert in self.view.experts]
        return replace(self, view=replace(view, base=view.base[:n], experts=experts))

    @property
    def _view(self) -> View:
        return replace(self.view, experts=[self.view.experts[i] for i in self.experts])


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

    def of_taus(taus: list[Tensor], *rest: Tensor) -> Any:
        return function(of(taus), *rest)

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
        patterns = _patterns(values).cpu().numpy()
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
    if values.n <= _SMALL:
        parts = [patterns.cpu().numpy() for patterns in values.map(_patterns)]
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
    for patterns in values.map(_patterns) if len(bins) else ():
        at = place[patterns.cpu() >> _LOW]
        cells = ((at << _LOW) | (patterns.cpu() & (1 << _LOW) - 1))[at >= 0]
        counts += torch.bincount(cells, minlength=len(counts)).numpy()
    found = np.flatnonzero(counts)
    return bins[found >> _LOW] << _LOW | found & (1 << _LOW) - 1, counts[found]


def trims(
    view: View, *, density: Sequence[float], statistics: Sequence[Spectrum] | None = None
) -> list[Trim]:
    """One `Trim` per expert: k = max(1, int(density·n)) entries kept, none at density 0.

    `statistics` are the experts' spectra; they are computed where they are not given.
    """
    n = view.base.numel()
    kept = [max(1, int(value * n)) if value > 0 else 0 for value in density]
    return [
        trim(task_vector(view, expert), k, statistics[expert] if statistics else None)
        for expert, k in enumerate(kept)
    ]


def trim(values: Quantity, k: int, known: Spectrum | None = None) -> Trim:
    """The `Trim` that keeps the k largest magnitudes: none at k ≤ 0, all at k ≥ n.

    All are kept, too, where one is infinite or NaN, so that it is seen and refused in the result.
    """
    n = values.n
    if k <= 0 or n == 0:
        return _as_tensors(math.inf, -1)
    if k >= n:
        return _as_tensors(0.0, n - 1)
    known = known or spectrum_of(values)
    if not known.finite:
        return _as_tensors(0.0, n - 1)
    bracket = known.bracket(k)
    return _select(values, _rows(values, [bracket])[0], bracket)


def _select(values: Quantity, rows: np.ndarray, bracket: Bracket) -> Trim:
    select = _select_among_ties if bracket.tied else _select_by_gathering
    return select(values, rows, bracket)


def trim_in_bracket(values: Quantity, k: int, known: Spectrum) -> tuple[Trim, np.ndarray]:
    """The same for 0 < k < n of finite magnitudes, with what it keeps of the k-th one's bracket.

    Returns:
        The trim, and the indices of those entries, int64, rising.
    """
    bracket = known.bracket(k)
    rows = _rows(values, [bracket])[0]
    found, index = _select(values, rows, bracket), _members(values, rows)
    magnitude = _patterns(values.at(_index(values, index))).cpu().numpy()
    threshold = _pattern(float(found.threshold))
    kept = (magnitude > threshold) | ((magnitude == threshold) & (index <= int(found.last)))
    return found, index[kept & (magnitude < bracket.stop)]


def band(values: Quantity, first: int, last: int, known: Spectrum | None = None) -> Band:
    """The magnitudes of ranks `first` up to, without, `last`, counted from the largest.

    All are kept where one is infinite or NaN and any is to be kept.
    """
    if not 0 < first < last < values.n:
        known = known or (spectrum_of(values) if 0 < first < last else None)
        first = first if known is None or known.finite else 0
        return Band(trim(values, first, known), trim(values, last if first < last else 0, known))
    known = known or spectrum_of(values)
    if not known.finite:
        return Band(trim(values, 0), trim(values, values.n))
    ends = [known.bracket(first), known.bracket(last)]
    rows = _rows(values, ends)
    upper, lower = (_select(values, own, end) for own, end in zip(rows, ends, strict=True))
    return Band(upper, lower)


def _rows(values: Quantity, brackets: Sequence[Bracket]) -> list[np.ndarray]:
    """How many entries of each bracket lie in each row of `_ROW`: one pass for one or two brackets.

    Returns:
        For each bracket int64 (rows,).
    """
    import torch

    bounds = [torch.tensor(_float(pattern)) for bracket in brackets for pattern in bracket[:2]]
    count = _count_rows if len(brackets) == 1 else _count_rows_twice
    whole = values.n // _ROW * _ROW
    parts: list[Any] = [*values.head(whole).map(count, *bounds)]
    if whole < values.n:
        parts.append(count(_padded(values, whole), *bounds))
    found = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return [counts.astype(np.int64) for counts in found]


def _count_rows(values: Tensor, floor: Tensor, ceiling: Tensor) -> tuple[Tensor, ...]:
    """Per row, how many entries have floor ≤ |x| < ceiling."""
    magnitude = values.abs().float().view(-1, _ROW)
    return (((magnitude >= floor) & (magnitude < ceiling)).float().sum(1),)


def _count_rows_twice(
    values: Tensor, floor: Tensor, ceiling: Tensor, other_floor: Tensor, other_ceiling: Tensor
) -> tuple[Tensor, ...]:
    first = _count_rows(values, floor, ceiling)
    return (*first, *_count_rows(values, other_floor, other_ceiling))


def _padded(values: Quantity, start: int) -> Tensor:
    """The values from `start` on, filled up with NaN to a whole row."""
    import torch

    rest = values.at(slice(start, None))
    return torch.nn.functional.pad(rest, (0, -rest.numel() % _ROW), value=math.nan)


def _select_among_ties(values: Quantity, rows: np.ndarray, bracket: Bracket) -> Trim:
    """The trim in a bracket of one value: the `rank`-th of its entries is the last one kept."""
    total, value = rows.cumsum(), _float(bracket.start)
    row = int(np.searchsorted(total, bracket.rank))
    rank = bracket.rank - (int(total[row - 1]) if row else 0)
    magnitude = values.at(slice(row * _ROW, (row + 1) * _ROW)).abs().float()
    ties = (magnitude == value).nonzero().view(-1)
    return _as_tensors(value, row * _ROW + int(ties[rank - 1]))


def _select_by_gathering(values: Quantity, rows: np.ndarray, bracket: Bracket) -> Trim:
    """The trim at a bracket's `rank`-th largest pattern, from the rows with entries in it."""
    index = _members(values, rows)
    patterns = _patterns(values.at(_index(values, index))).cpu().numpy()
    inside = (patterns >= bracket.start) & (patterns < bracket.stop)
    index, patterns = index[inside], patterns[inside]
    pattern = int(np.partition(patterns, -bracket.rank)[-bracket.rank])
    tied = bracket.rank - int(np.count_nonzero(patterns > pattern))
    return _as_tensors(_float(pattern), int(index[np.flatnonzero(patterns == pattern)[tied - 1]]))


def _members(values: Quantity, rows: np.ndarray) -> np.ndarray:
    """The indices of all entries in the rows that have some in the bracket, rising."""
    index = (np.flatnonzero(rows)[:, None] * _ROW + np.arange(_ROW)).ravel()
    return index[index < values.n]


def _index(values: Quantity, index: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(index).to(values.view.base.device)


def _as_tensors(threshold: float, last: int) -> Trim:
    import torch

    return Trim(torch.tensor(threshold), torch.tensor(last))


def _float(pattern: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", pattern))[0])


def _pattern(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def _patterns(tau: Tensor) -> Tensor:
    """Magnitudes in float32 as int32 bit patterns."""
    import torch

    return tau.abs().float().view(torch.int32)


def _bins(tau: Tensor) -> Tensor:
    return _patterns(tau) >> _LOW
