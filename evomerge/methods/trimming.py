"""Trims by magnitude: the k largest |τ| of a task vector, exactly, of tied ones the lower indices.

What is said of |τ| here is true of any `Quantity` that the task vectors decide entry by entry.

A non-negative float32 orders as its bit pattern does. The upper 20 of its 31 bits are counted once
per source (`spectrum`): for any k the counts say in which bracket of about n/4096 entries the k-th
largest lies. A candidate then looks at the entries of that one bracket only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
_FEW = 1 << 12
"""Entries up to which all are looked at at once, whatever the bracket."""
_SMALL = 1 << 22
"""Entries up to which patterns are sorted, not counted by bin: quicker, but all held at a time."""
_INFINITE = 0x7F800000
"""The pattern of infinity; those of NaN lie above it."""


class Trim(NamedTuple):
    """Which entries of a task vector are its k largest by |τ| in float32.

    Kept are the entries above `threshold`, float32 (), and those equal to it up to index `last`,
    int32 (), or int64 () where there are more than 2³¹: of tied entries the lower index comes
    first.
    """

    threshold: Tensor
    last: Tensor

    def part(self, where: slice) -> Trim:
        """The trim of a slice of at most 2³¹ entries, `last` counted in it, int32."""
        import torch

        if not where.start and self.last.dtype == torch.int32:
            return self
        last = (self.last - where.start).clamp(-1, (1 << 31) - 1)
        return self._replace(last=last.to(torch.int32))

    def keep(self, tau: Tensor) -> Tensor:
        """Boolean mask over the slice whose `part` this is; what is not finite is kept, so that it
        is seen in the result.
        """
        import torch

        magnitude = tau.abs().float()
        index = torch.arange(tau.numel(), dtype=torch.int32, device=tau.device).view(tau.shape)
        return ~(magnitude <= self.threshold) | (
            (magnitude == self.threshold) & (index <= self.last)
        )

    def of(self, tau: Tensor) -> Tensor:
        """τ, and 0 where an entry is not kept."""
        import torch

        return torch.where(self.keep(tau), tau, 0.0)


class Band(NamedTuple):
    """The entries that `lower` keeps and `upper` does not: a band of ranks."""

    upper: Trim
    lower: Trim

    def keep(self, tau: Tensor) -> Tensor:
        """Boolean mask over a slice, as `Trim.keep`."""
        return self.lower.keep(tau) & (~self.upper.keep(tau) | ~(tau.abs() < math.inf))

    def of(self, tau: Tensor) -> Tensor:
        """τ, and 0 where an entry is not kept."""
        import torch

        return torch.where(self.keep(tau), tau, 0.0)


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
    values = [task_vector(view, expert) for expert in range(len(density))]
    kept = [[max(1, int(value * n)) if value > 0 else 0] for value in density]
    return [one for [one] in cut(values, kept, statistics)]


def cut(
    values: Sequence[Quantity],
    ranks: Sequence[Sequence[int]],
    known: Sequence[Spectrum] | None = None,
) -> list[list[Trim]]:
    """Trims that keep the k largest magnitudes: none at k ≤ 0, all at k ≥ n.

    All are kept, too, where one is infinite or NaN, so that it is seen and refused in the result.

    Args:
        values: quantities of one base, whose tensors are passed over once for all of them.
        ranks: for each of them some k.
        known: their spectra; computed where they are not given, and needed.

    Returns:
        For each quantity one trim for each k.
    """
    n = values[0].n
    inner = {i: [k for k in own if 0 < k < n] for i, own in enumerate(ranks)}
    spectra = {i: known[i] if known else spectrum_of(values[i]) for i, own in inner.items() if own}
    brackets = {i: [one.bracket(k) for k in inner[i]] for i, one in spectra.items() if one.finite}
    rows = _rows([values[i] for i in brackets], list(brackets.values()))
    searches = {
        (i, k): _Search(values[i], counts, bracket)
        for (i, own), counted in zip(brackets.items(), rows, strict=True)
        for k, counts, bracket in zip(inner[i], counted, own, strict=True)
    }
    found = _selected(searches)
    return [
        [found.get((i, k)) or _all_or_none(k, values[i]) for k in own]
        for i, own in enumerate(ranks)
    ]


def trim_in_bracket(values: Quantity, k: int, known: Spectrum) -> tuple[Trim, Tensor]:
    """The trim for 0 < k < n of finite magnitudes, with what it keeps of the k-th one's bracket.

    Returns:
        The trim, and the indices of those entries, int64, rising.
    """
    bracket = known.bracket(k)
    [[rows]] = _rows([values], [[bracket]])
    index, patterns = _members(_Search(values, rows, bracket))
    found = _largest(index, patterns, bracket.rank, values.n)
    threshold = _patterns(found.threshold)
    kept = (patterns > threshold) | ((patterns == threshold) & (index <= found.last))
    return found, index[kept]


def _all_or_none(k: int, values: Quantity) -> Trim:
    import torch

    device, none = values.view.base.device, k <= 0 or values.n == 0
    threshold = torch.tensor(torch.finfo(torch.float32).max if none else 0.0, device=device)
    last = torch.tensor(-1 if none else values.n - 1, device=device)
    return Trim(threshold, _placed(last, values.n))


def _rows(values: Sequence[Quantity], brackets: Sequence[Sequence[Bracket]]) -> list[list[Tensor]]:
    """How many entries of a bracket lie in each row of `_ROW`, in one pass over memory for all.

    Args:
        values: quantities of one base.
        brackets: some for each of them.

    Returns:
        For each quantity and each of its brackets float32 (rows,).
    """
    import torch

    if not values:
        return []
    n, view = values[0].n, values[0].view
    if n <= _FEW:
        every = torch.ones(-(-n // _ROW), device=view.base.device)
        return [[every for _ in own] for own in brackets]
    experts = [expert for one in values for expert in one.experts]
    pairs = zip(values, brackets, strict=True)
    count = _counting(tuple((one.of, len(one.experts), len(own)) for one, own in pairs))
    edges = [_float(edge) for own in brackets for bracket in own for edge in bracket[:2]]
    bounds = torch.tensor(edges, device=view.base.device).view(-1, 2)
    whole = n // _ROW * _ROW
    parts = [*view.map(count, experts, bounds, stop=whole)]
    if whole < n:
        parts.append(
            count([_padded(tau) for tau in view.taus(slice(whole, None), experts)], bounds)
        )
    counts = iter([torch.cat(part) for part in zip(*parts, strict=True)])
    return [[next(counts) for _ in own] for own in brackets]


@cache
def _counting(
    quantities: tuple[tuple[Callable[[list[Tensor]], Tensor], int, int], ...],
) -> Callable[..., list[Tensor]]:
    """A function that counts rows, for quantities with so many experts and brackets each.

    Its arguments are all their experts' τ, flat, and bounds (brackets, 2); for each bracket it
    gives, row by row, how many entries have floor ≤ |x| < ceiling. One object for each, so that it
    is compiled once.
    """

    def count(taus: list[Tensor], bounds: Tensor) -> list[Tensor]:
        counts, start, bound = [], 0, iter(bounds)
        for of, experts, brackets in quantities:
            magnitude = of(taus[start : start + experts]).abs().float().view(-1, _ROW)
            for floor, ceiling in (next(bound) for _ in range(brackets)):
                counts.append(((magnitude >= floor) & (magnitude < ceiling)).float().sum(1))
            start += experts
        return counts

    return count


def _padded(tau: Tensor) -> Tensor:
    """The entries, filled up with NaN to a whole row."""
    import torch

    return torch.nn.functional.pad(tau, (0, -tau.numel() % _ROW), value=math.nan)


class _Search(NamedTuple):
    """For the `rank`-th largest entry of a bracket.

    Attributes:
        rows: float32 (rows,), how many of the bracket's entries each row has, at most.
    """

    values: Quantity
    rows: Tensor
    bracket: Bracket


def _selected(searches: Mapping[tuple[int, int], _Search]) -> dict[tuple[int, int], Trim]:
    """The trims that end at the entries searched for."""
    tied = {k: one for k, one in searches.items() if one.bracket.tied and one.values.n > _FEW}
    found = {
        key: _largest(*_members(one), one.bracket.rank, one.values.n)
        for key, one in searches.items()
        if key not in tied
    }
    if tied:
        found |= zip(tied, _among_ties(list(tied.values())), strict=True)
    return found


def _among_ties(searches: Sequence[_Search]) -> list[Trim]:
    """The trims in brackets of one value each: the `rank`-th of the entries is the last kept."""
    import torch

    rows = torch.stack([one.rows for one in searches])
    ranks = torch.tensor([[one.bracket.rank] for one in searches], device=rows.device)
    thresholds = torch.tensor([_float(one.bracket.start) for one in searches], device=rows.device)
    total, n = rows.cumsum(1, dtype=torch.int64), searches[0].values.n
    row = torch.searchsorted(total, ranks)
    ranks -= total.gather(1, row) - rows.gather(1, row).to(torch.int64)
    index = (row * _ROW + torch.arange(_ROW, device=rows.device)).clamp(max=n - 1)
    at = [one.values.at(own) for one, own in zip(searches, index, strict=True)]
    ties = (torch.stack(at).abs().float() == thresholds[:, None]).cumsum(1)
    last = _placed(index.gather(1, torch.searchsorted(ties, ranks)), n)
    return [Trim(*one) for one in zip(thresholds, last.view(-1), strict=True)]


def _members(search: _Search) -> tuple[Tensor, Tensor]:
    """The bracket's entries: their indices, int64, rising, and patterns."""
    import torch

    values, rows, bracket = search
    places = torch.arange(_ROW, device=rows.device)
    index = (rows.nonzero() * _ROW + places).view(-1)
    if values.n % _ROW:
        index = index[index < values.n]
    patterns = _patterns(values.at(index))
    inside = (patterns >= bracket.start) & (patterns < bracket.stop)
    return index[inside], patterns[inside]


def _largest(index: Tensor, patterns: Tensor, k: int, n: int) -> Trim:
    """The trim that keeps the k largest of these patterns, of tied ones those of lower index."""
    import torch

    pattern = patterns.kthvalue(len(patterns) - k + 1).values
    ranks = k - (patterns > pattern).sum()
    ties = (patterns == pattern).cumsum(0)
    last = index.take(torch.searchsorted(ties, ranks))
    return Trim(pattern.view(torch.float32), _placed(last, n))


def _placed(last: Tensor, n: int) -> Tensor:
    """Indices among `n` entries in the dtype that `Trim.last` has for them."""
    import torch

    return last.to(torch.int32 if n <= 1 << 31 else torch.int64)


def _float(pattern: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", pattern))[0])


def _patterns(tau: Tensor) -> Tensor:
    """Magnitudes in float32 as int32 bit patterns."""
    import torch

    return tau.abs().float().view(torch.int32)


def _bins(tau: Tensor) -> Tensor:
    return _patterns(tau) >> _LOW
