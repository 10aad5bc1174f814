"""Consensus merging: entries that several experts need (TALL masks)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from evomerge.methods import Lambda, PerExpert, Range, Tensor, merge_method


@merge_method(reference="Wang et al. 2024, arXiv:2405.07813, eqs. 5 and 6", relative=True)
def consensus(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    threshold: Annotated[Sequence[float], PerExpert(0.4, low=0.0, high=10.0)],
    agree: Annotated[float, Range(1.0, 16.0)] = 2.0,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Add the sum of task vectors where it matters to at least `agree` experts: θ₀ + λ(m ⊙ Σ τ).

    An entry matters to an expert when |τᵢ| > thresholdᵢ · |Σ τ − τᵢ| (the paper tunes thresholds in
    0.2 … 0.6, on the sum of task vectors). With one expert, what it changed is kept.
    """
    taus = [expert - base for expert in experts]
    total = sum(taus[1:], taus[0])
    masks = [
        (tau.abs() > (total - tau).abs() * value).to(total.dtype)
        for value, tau in zip(threshold, taus, strict=True)
    ]
    count = sum(masks[1:], masks[0])
    enough = (count >= agree) | (count >= len(experts))
    return base + total * enough * lambda_
