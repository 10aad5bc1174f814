"""Trims by magnitude: the k largest |τ| of a task vector, exactly, of tied ones the lower indices.

The histogram of the magnitudes says in which bin of values the k-th largest lies. What is left to
do for a candidate is one pass that counts that bin's entries row by row (a comparison and a sum,
at memory bandwidth), and a sort of those few entries.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from evomerge.methods.core.magnitude_histograms import (
    SMALL,
    Bin,
    MagnitudeHistogram,
    Ranking,
    by_magnitude,
    histogram_of,
    patterns_of,
)
from evomerge.methods.core.slices import first_places, places, traced
from evomerge.methods.core.view import Tensor, View

_ROW = 64
"""Entries that a search counts together: a mask entry by entry would cost more than the sums."""
_FEW = 1 << 12
"""Entries up to which all are looked at at once, whatever the bin."""
_SAMPLED, _DEVIATIONS = 16, 4.5
"""A sample has so many times √n of n entries; and by how many of its standard deviations the rank
of an entry in it is wrong at most, mostly: once in 100,000 selections it is, which costs a pass."""
_MOST = (1 << 31) - 1
"""No pattern is larger."""
_LARGEST = 0x7F7FFFFF
"""The pattern of the largest float32."""


class Trim(NamedTuple):
    """The k largest entries of a task vector by |τ| in float32.

    Kept are the entries above `threshold`, float32 (), and those equal to it up to index `last`,
    int32 (), or int64 () where there are more than 2³¹: of tied entries the lower index comes
    first. A slice's has its `first_places` beside.
    """

    threshold: Tensor
    last: Tensor
    first: Tensor | None = None

    def part(self, where: slice) -> Trim:
        """Return the trim of a slice of at most 2³¹ entries, `last` counted in it, int32."""
        import torch

        last = self.last
        if where.start or last.dtype != torch.int32:
            last = (last - where.start).clamp(-1, (1 << 31) - 1).to(torch.int32)
        return self._replace(last=last, first=first_places())

    def keep(self, tau: Tensor) -> Tensor:
        """Return a boolean mask over the slice whose `part` this is."""
        magnitude, bound = tau.abs().float(), self._bound(tau)
        if bound is not None:
            return magnitude > bound
        index = places(tau, first_places() if self.first is None else self.first)
        return (magnitude > self.threshold) | ((magnitude == self.threshold) & (index <= self.last))

    def of(self, tau: Tensor, at: Any = None, expert: int = 0) -> Tensor:
        """Return τ, and 0 where an entry is not kept."""
        import torch

        bound = self._bound(tau) if tau.dtype == torch.float32 else None
        if bound is None:
            return torch.where(self.keep(tau), tau, 0.0)
        # uncompiled, `where` takes as long as thirty sums
        return torch.nn.functional.hardshrink(tau, bound) if bound >= 0 else tau

    def _bound(self, tau: Tensor) -> float | None:
        """Return what the magnitude of all kept entries of a slice is above, and of no other's.

        None where the last tied entry lies in the slice, and where numbers are not known (functions
        that are compiled are traced without them) or would have to be waited for (a GPU's).
        """
        if traced(self.last) or self.last.device.type != "cpu":
            return None
        last, threshold = int(self.last), float(self.threshold)
        if last < 0:
            return threshold
        if last < tau.numel() - 1:
            return None
        return float(np.nextafter(np.float32(threshold), np.float32(-1)))


class Band(NamedTuple):
    """The entries that `lower` keeps and `upper` does not: a band of ranks."""

    upper: Trim
    lower: Trim

    def keep(self, tau: Tensor) -> Tensor:
        """Return a boolean mask over a slice, as `Trim.keep`."""
        return self.lower.keep(tau) & ~self.upper.keep(tau)

    def of(self, tau: Tensor, at: Any = None, expert: int = 0) -> Tensor:
        """Return τ, and 0 where an entry is not kept."""
        import torch

        if traced(tau):
            return torch.where(self.keep(tau), tau, 0.0)
        kept = self.lower.of(tau)
        return kept - self.upper.of(kept)  # the one keeps all that the other does


def trims(
    view: View,
    *,
    density: Sequence[float],
    statistics: Sequence[MagnitudeHistogram] | None = None,
) -> list[Trim]:
    """Find one `Trim` per expert: k = max(1, int(density·n)) entries kept, none at density 0.

    `statistics` are the experts' histograms; they are counted where they are not given.
    """
    n = view.base.numel()
    rankings = [by_magnitude(view, expert) for expert in range(len(density))]
    kept = [[max(1, int(value * n)) if value > 0 else 0] for value in density]
    return [one for [one] in cut(rankings, kept, statistics)]


def cut(
    rankings: Sequence[Ranking],
    ranks: Sequence[Sequence[int]],
    known: Sequence[MagnitudeHistogram] | None = None,
) -> list[list[Trim]]:
    """Find the trims that keep the k largest magnitudes: none at k ≤ 0, all at k ≥ n.

    Args:
        rankings: of one base, whose tensors are passed over once for all of them.
        ranks: for each of them some k.
        known: their histograms. Where they are not given entries are selected in one pass, or
            counted where many are tied. Few entries are looked at all at once, without.

    Returns:
        For each ranking one trim for each k.
    """
    if rankings[0].n <= _FEW:
        return [_among_all(one, own) for one, own in zip(rankings, ranks, strict=True)]
    if known is None:
        each = [_by_selection(one, own) for one, own in zip(rankings, ranks, strict=True)]
        if all(own is not None for own in each):
            return [own for own in each if own is not None]
    n = rankings[0].n
    # 1. only 0 < k < n have to be searched for, and only they need a histogram
    inner = {i: [k for k in own if 0 < k < n] for i, own in enumerate(ranks)}
    histograms = {
        i: known[i] if known else histogram_of(rankings[i]) for i, own in inner.items() if own
    }
    # 2. the bin of each k-th largest, and how many entries of it each row has
    bins = {i: [one.bin_of_rank(k) for k in inner[i]] for i, one in histograms.items()}
    rows = _rows([rankings[i] for i in bins], list(bins.values()))
    # 3. the k-th largest within its bin
    searches = {
        (i, k): _Search(rankings[i], counts, bin_)
        for (i, own), counted in zip(bins.items(), rows, strict=True)
        for k, counts, bin_ in zip(inner[i], counted, own, strict=True)
    }
    found = _selected(searches)
    return [
        [found.get((i, k)) or _all_or_none(k, rankings[i]) for k in own]
        for i, own in enumerate(ranks)
    ]


def _by_selection(ranking: Ranking, ranks: Sequence[int]) -> list[Trim] | None:
    """Find the trims of one ranking without its histogram, in one pass over memory.

    None where a sample misleads, or so many entries are tied that they would take too much memory.
    """
    n = ranking.n
    inner = sorted({k for k in ranks if 0 < k < n})
    # 1. between which two patterns each k-th largest lies, by an ordered sample of every so many
    # entries, an odd number, which seldom divides a row
    step = max(1, math.isqrt(n) // _SAMPLED) | 1
    sample = np.sort(patterns_of(ranking.at(slice(None, None, step))).cpu().numpy())[::-1]
    spans = [_span(sample, k / n) for k in inner]
    # 2. how many entries lie above, and those between, in the order of their indices
    above, start = [0] * len(inner), 0
    between: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in inner]
    for block in ranking.map(patterns_of) if inner else ():
        patterns = block.cpu().numpy()
        for i, (low, high) in enumerate(spans):
            above[i] += int(np.count_nonzero(patterns > high))
            own = np.flatnonzero((patterns >= low) & (patterns <= high))
            between[i].append((own + start, patterns[own]))
            if sum(len(index) for index, _ in between[i]) > max(n // 8, SMALL):
                return None
        start += len(patterns)
    # 3. the k-th largest of all is one of these; of those that share its pattern, the last kept
    found = {}
    for k, more, parts in zip(inner, above, between, strict=True):
        index, patterns = (np.concatenate(part) for part in zip(*parts, strict=True))
        rank = k - more
        if not 0 < rank <= len(patterns):
            return None
        least, place = _smallest_kept(patterns, rank)
        found[k] = _trim_at(least, int(index[place]), ranking)
    return [found.get(k) or _all_or_none(k, ranking) for k in ranks]


def _among_all(ranking: Ranking, ranks: Sequence[int]) -> list[Trim]:
    """Find the trims of one ranking by looking at all its entries at once."""
    patterns, found = patterns_of(ranking.at(slice(None))).cpu().numpy(), []
    for k in ranks:
        inner = 0 < k < ranking.n
        found.append(
            _trim_at(*_smallest_kept(patterns, k), ranking) if inner else _all_or_none(k, ranking)
        )
    return found


def _smallest_kept(patterns: np.ndarray, rank: int) -> tuple[int, int]:
    """Return the `rank`-th largest pattern, and the place of the last of its equals that is kept.

    Args:
        patterns: of entries whose indices rise.
    """
    least = np.partition(patterns, len(patterns) - rank)[len(patterns) - rank]
    more = int(np.count_nonzero(patterns > least))
    return int(least), int(np.flatnonzero(patterns == least)[rank - more - 1])


def _trim_at(least: int, last: int, ranking: Ranking) -> Trim:
    """Make the trim whose least magnitude has this pattern, with ties up to index `last`."""
    import torch

    device = ranking.view.base.device
    threshold = torch.tensor(_float(least), device=device)
    return Trim(threshold, _placed(torch.tensor(last, device=device), ranking.n))


def _span(sample: np.ndarray, share: float) -> tuple[int, int]:
    """Return the patterns between which the entry lies that `share` of all are larger than.

    Args:
        sample: patterns of some entries, the largest first.
    """
    size = len(sample)
    wrong = 2 + math.ceil(_DEVIATIONS * math.sqrt(size * share * (1 - share)))
    first, last = math.floor(share * size) - wrong, math.ceil(share * size) + wrong
    return (int(sample[last]) if last < size else 0), (int(sample[first]) if first >= 0 else _MOST)


def trim_within_bin(ranking: Ranking, k: int, known: MagnitudeHistogram) -> tuple[Trim, Tensor]:
    """Find the trim for 0 < k < n, and which entries of the k-th one's bin it keeps.

    Returns:
        The trim, and the indices of those entries, int64, rising.
    """
    import torch

    bin_ = known.bin_of_rank(k)
    [[rows]] = _rows([ranking], [[bin_]])
    found, index = _among_few(_Search(ranking, rows, bin_))
    return found, torch.from_numpy(index).to(rows.device)


def _all_or_none(k: int, ranking: Ranking) -> Trim:
    none = k <= 0 or ranking.n == 0
    return _trim_at(_LARGEST if none else 0, -1 if none else ranking.n - 1, ranking)


def _rows(rankings: Sequence[Ranking], bins: Sequence[Sequence[Bin]]) -> list[list[Tensor]]:
    """Count the entries of a bin in each row of `_ROW`, in one pass over memory for all bins.

    Args:
        rankings: of one base.
        bins: some for each of them.

    Returns:
        For each ranking and each of its bins float32 (rows,).
    """
    import torch

    if not rankings:
        return []
    n, view = rankings[0].n, rankings[0].view
    # of few entries every row is looked at: a count of 1 stands for "has some"
    if n <= _FEW:
        every = torch.ones(-(-n // _ROW), device=view.base.device)
        return [[every for _ in own] for own in bins]
    experts = [expert for one in rankings for expert in one.experts]
    pairs = zip(rankings, bins, strict=True)
    count = _counting(tuple((one.of, len(one.experts), len(own)) for one, own in pairs))
    edges = [_float(edge) for own in bins for bin_ in own for edge in bin_[:2]]
    bounds = torch.tensor(edges, device=view.base.device).view(-1, 2)
    # whole rows block by block, then the last one, filled up
    whole = n // _ROW * _ROW
    parts = [*view.map(count, experts, bounds, stop=whole)]
    if whole < n:
        parts.append(
            count([_padded(tau) for tau in view.taus(slice(whole, None), experts)], bounds)
        )
    joined = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    counts = iter(joined)
    return [[next(counts) for _ in own] for own in bins]


@cache
def _counting(
    rankings: tuple[tuple[Callable[[list[Tensor]], Tensor], int, int], ...],
) -> Callable[..., list[Tensor]]:
    """Make a function that counts rows, for rankings with so many experts and bins each.

    Its arguments are all their experts' τ, flat, and bounds (bins, 2); for each bin it gives, row
    by row, how many entries have start ≤ |x| < stop; a stop that is NaN bounds nothing. One object
    for each, so that it is compiled once.
    """

    def count(taus: list[Tensor], bounds: Tensor) -> list[Tensor]:
        counts, first, bound = [], 0, iter(bounds)
        for of, experts, bins in rankings:
            magnitude = of(taus[first : first + experts]).abs().float().view(-1, _ROW)
            for start, stop in (next(bound) for _ in range(bins)):
                counts.append(((magnitude >= start) & ~(magnitude >= stop)).float().sum(1))
            first += experts
        return counts

    return count


def _padded(tau: Tensor) -> Tensor:
    """Fill the entries up with NaN, which no bin counts, to a whole row."""
    import torch

    return torch.nn.functional.pad(tau, (0, -tau.numel() % _ROW), value=math.nan)


class _Search(NamedTuple):
    """A search for the `rank`-th largest entry of a bin.

    Attributes:
        rows: float32 (rows,), how many of the bin's entries each row has, at most.
    """

    ranking: Ranking
    rows: Tensor
    bin: Bin


def _selected(searches: Mapping[tuple[int, int], _Search]) -> dict[tuple[int, int], Trim]:
    """Find the trims that end at the entries searched for."""
    tied = {key: one for key, one in searches.items() if one.bin.tied}
    found = {key: _among_few(one)[0] for key, one in searches.items() if key not in tied}
    if tied:
        found |= zip(tied, _among_ties(list(tied.values())), strict=True)
    return found


def _among_ties(searches: Sequence[_Search]) -> list[Trim]:
    """Find the trims in bins of one value each: the `rank`-th of its entries is the last kept."""
    import torch

    rows = torch.stack([one.rows for one in searches])
    ranks = torch.tensor([[one.bin.rank] for one in searches], device=rows.device)
    thresholds = torch.tensor([_float(one.bin.start) for one in searches], device=rows.device)
    total, n = rows.cumsum(1, dtype=torch.int64), searches[0].ranking.n
    # the row that holds the rank-th entry, and its rank within that row
    row = torch.searchsorted(total, ranks)
    ranks -= total.gather(1, row) - rows.gather(1, row).to(torch.int64)
    # its place in that row, of which all entries are looked at
    index = (row * _ROW + torch.arange(_ROW, device=rows.device)).clamp(max=n - 1)
    ties = (_at(searches, index.split(1)).abs().float() == thresholds[:, None]).cumsum(1)
    last = _placed(index.gather(1, torch.searchsorted(ties, ranks)), n)
    return [Trim(*one) for one in zip(thresholds, last.view(-1), strict=True)]


def _at(searches: Sequence[_Search], indices: Sequence[Tensor]) -> Tensor:
    """Return the values at each search's indices, (rows, `_ROW`), one after the other."""
    import torch

    rest, values = iter(indices), []
    for _, own in groupby(searches, key=lambda one: id(one.ranking)):
        same = list(own)
        values.append(same[0].ranking.at(torch.cat([next(rest) for _ in same])))
    return torch.cat(values)


def _among_few(search: _Search) -> tuple[Trim, np.ndarray]:
    """Find the trim in a bin of a few entries, and the indices of those it keeps, int64, rising."""
    ranking, (start, stop, rank, _) = search.ranking, search.bin
    # 1. the entries of the bin, of all rows that have some
    rows = search.rows.nonzero().view(-1)
    patterns = _patterns_in(ranking, rows)
    place = np.flatnonzero((patterns >= start) & (patterns < stop))
    index = rows.cpu().numpy()[place // _ROW] * _ROW + place % _ROW
    patterns = patterns.reshape(-1)[place]
    # 2. the rank-th largest, and of those that are equal to it the last kept
    least, end = _smallest_kept(patterns, rank)
    last = int(index[end])
    kept = index[(patterns > least) | ((patterns == least) & (index <= last))]
    return _trim_at(least, last, ranking), kept


def _patterns_in(ranking: Ranking, rows: Tensor) -> np.ndarray:
    """Return the patterns of the entries of some rows, int32 (rows, `_ROW`); beyond the end -1."""
    import torch

    view, n = ranking.view, ranking.n
    if n % _ROW == 0:
        # whole rows are read much quicker than entries
        tensors = (view.base, *(view.experts[expert] for expert in ranking.experts))
        base, *experts = (one.view(-1, _ROW)[rows].to(view.dtype) for one in tensors)
        return patterns_of(ranking.of([one - base for one in experts])).cpu().numpy()
    index = rows[:, None] * _ROW + torch.arange(_ROW, device=rows.device)
    patterns = patterns_of(ranking.at(index.clamp(max=n - 1)))
    return torch.where(index < n, patterns, -1).cpu().numpy()


def _placed(last: Tensor, n: int) -> Tensor:
    """Give indices among `n` entries the dtype that `Trim.last` has for them."""
    import torch

    return last.to(torch.int32 if n <= 1 << 31 else torch.int64)


def _float(pattern: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", pattern))[0])
