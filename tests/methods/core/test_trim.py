"""Trims found by selection are those found by histograms, ties included."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.methods import View
from evomerge.methods.core.magnitude_histograms import by_magnitude, histogram_of
from evomerge.methods.core.trim import cut


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
