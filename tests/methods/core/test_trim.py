"""Trims found by selection are those found by histograms, ties included."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.methods import View
from evomerge.methods.core.magnitude_histograms import by_magnitude, histogram_of
from evomerge.methods.core.slices import part_of
from evomerge.methods.core.trim import Band, cut


@given(st.integers(1, 9000), st.integers(0, 3), st.integers(0, 2**16))
def test_a_selection_finds_the_same_trims_as_a_histogram(n, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, generator=generator)
    change = torch.randn(n, generator=generator)
    if kind == 1:
        change = change.to(torch.bfloat16).float()  # some ties
    elif kind == 2:
        change = (change * 2).round()  # many
    elif kind == 3:
        change = torch.zeros(n)
    view = View(base * 0, [change], torch.float32)
    ranks = sorted({0, 1, n // 3, n // 2, n - 1, n, n + 1})
    ranking = by_magnitude(view, 0)
    [ours] = cut([ranking], [ranks])
    [theirs] = cut([ranking], [ranks], [histogram_of(ranking)])
    for k, one, other in zip(ranks, ours, theirs, strict=True):
        assert torch.equal(one.threshold, other.threshold), k
        assert torch.equal(one.last, other.last), k
        assert one.last.dtype == other.last.dtype
        assert int(one.keep(change).sum()) == min(k, n)


def test_slices_keep_the_largest_entries_and_of_tied_ones_those_that_come_first():
    generator = torch.Generator().manual_seed(0)
    tau = (torch.randn(5000, generator=generator) * 4).round() / 4
    ordered = (-tau.abs()).argsort(stable=True)
    ranks = [0, 1, 700, 1700, 4999, 5000]
    [found] = cut([by_magnitude(View(tau * 0, [tau], torch.float32), 0)], [ranks])
    for k, trim in zip(ranks, found, strict=True):
        kept = torch.zeros(5000, dtype=torch.bool)
        kept[ordered[:k]] = True
        wanted = torch.where(kept, tau, 0.0)
        band = Band(found[1], trim)
        for part in (slice(at, at + 500) for at in range(0, 5000, 500)):
            assert torch.equal(trim.part(part).of(tau[part]), wanted[part]), (k, part)
            assert torch.equal(trim.part(part).keep(tau[part]), kept[part]), (k, part)
            if k:
                own = part_of(band, part).of(tau[part])
                inside = torch.arange(part.start, part.stop) != ordered[0]
                assert torch.equal(own, wanted[part] * inside), (k, part)


def test_a_sample_that_misleads_costs_a_pass_and_no_byte():
    """Every entry that is sampled is small, and of the others many are equal."""
    tau = torch.full((40_000,), 2.0)
    tau[::13] = 1.0 + torch.arange(len(tau[::13])) / 1e4
    ranking = by_magnitude(View(tau * 0, [tau], torch.float32), 0)
    for k, threshold in ((5, 2.0), (36_923, 2.0), (36_924, float(tau[::13].max()))):
        [[found]] = cut([ranking], [[k]])
        assert int(found.keep(tau).sum()) == k
        assert found.threshold == threshold
