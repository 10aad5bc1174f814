"""Trims by magnitude: the k largest |τ| of a task vector, exactly, of tied ones the lower indices.

Its spectrum says in which bracket of values the k-th largest lies, so that a candidate looks at the
entries of that one bracket only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import NamedTuple

from evomerge.methods.registry import Tensor, View
from evomerge.methods.spectra import (
    SMALL,
    Bracket,
    Quantity,
    Spectrum,
    patterns_of,
    spectrum_of,
    task_vector,
)

_ROW = 64
"""Entries that a search counts together: a mask entry by entry would cost more than the sums."""
_FEW = 1 << 12
"""Entries up to which all are looked at at once, whatever the bracket."""


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
    [found], index = _among_few([_Search(values, rows, bracket)])
    return found, index[: bracket.rank].sort().values


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
    few = {key: one for key, one in searches.items() if key not in tied}
    ordered = list(few.values())
    # of large tensors one search at a time, which holds its rows' entries
    step = max(1, len(few)) if all(one.values.n <= SMALL for one in ordered) else 1
    parts = [_among_few(ordered[i : i + step]) for i in range(0, len(few), step)]
    found = dict(zip(few, [trim for trims, _ in parts for trim in trims], strict=True))
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
    ties = (_at(searches, index.split(1)).abs().float() == thresholds[:, None]).cumsum(1)
    last = _placed(index.gather(1, torch.searchsorted(ties, ranks)), n)
    return [Trim(*one) for one in zip(thresholds, last.view(-1), strict=True)]


def _at(searches: Sequence[_Search], places: Sequence[Tensor]) -> Tensor:
    """The values at each search's places, (rows, `_ROW`), one after the other."""
    import torch

    rest, values = iter(places), []
    for _, own in groupby(searches, key=lambda one: id(one.values)):
        same = list(own)
        values.append(same[0].values.at(torch.cat([next(rest) for _ in same])))
    return torch.cat(values)


def _among_few(searches: Sequence[_Search]) -> tuple[list[Trim], Tensor]:
    """The trims in brackets of a few entries, and the indices of all these entries, int64, sorted.

    All searches go through one sort: by search, then the largest first, of tied entries the lower
    index.
    """
    import torch

    n, device = searches[0].values.n, searches[0].rows.device
    search, row = torch.stack([one.rows for one in searches]).nonzero(as_tuple=True)
    index = row[:, None] * _ROW + torch.arange(_ROW, device=device)
    counts = search.bincount(minlength=len(searches)).tolist()
    patterns = patterns_of(_at(searches, index.clamp(max=n - 1).split(counts)))
    bounds = [one.bracket[:3] for one in searches]
    start, stop, rank = torch.tensor(bounds, device=device).unbind(1)
    inside = (patterns >= start[search, None]) & (patterns < stop[search, None]) & (index < n)
    place, lane = inside.nonzero(as_tuple=True)
    search, index, patterns = search[place], index[place, lane], patterns[place, lane]
    order = ((search << 31) - patterns).argsort(stable=True)
    first = torch.searchsorted(search, torch.arange(len(searches), device=device))
    index, patterns = index[order], patterns[order]
    last = first + rank - 1
    ends = zip(patterns[last].view(torch.float32), _placed(index[last], n), strict=True)
    return [Trim(*end) for end in ends], index


def _placed(last: Tensor, n: int) -> Tensor:
    """Indices among `n` entries in the dtype that `Trim.last` has for them."""
    import torch

    return last.to(torch.int32 if n <= 1 << 31 else torch.int64)


def _float(pattern: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", pattern))[0])
