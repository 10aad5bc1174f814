"""Arcee fusion: the expert's entries of outstanding importance."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.methods import Lambda, Tensor, merge_method


@merge_method(
    reference="Arcee AI; as in mergekit 0.1.5 (arcee_fusion)",
    experts=(1, 1),
    elementwise=False,
    copies=5,
)
def arcee_fusion(base: Tensor, experts: Sequence[Tensor], *, lambda_: Lambda = 1.0) -> Tensor:
    """Take over the entries of outstanding importance.

    Importance is |τ| times KL(softmax θ‖softmax θ₀) of the entry's row (last dimension, in
    float64). Those of at least median + 1.5 · (third − first quartile) are the expert's. Quartiles
    are the entries of rank ⌊q(n−1)⌋ among all; mergekit estimates them in tensors above 10⁶.
    """
    import torch

    # 1. how important each entry is
    expert = experts[0]
    importance = (expert - base).abs() * _divergence(expert, base).to(base)
    # 2. the bound of outliers, as a box plot has it
    flat = importance.flatten()
    places = [int(q * (flat.numel() - 1)) + 1 for q in (0.25, 0.5, 0.75)]
    first, median, third = (flat.kthvalue(place).values for place in places)
    chosen = importance >= median + 1.5 * (third - first)
    return base + torch.where(chosen, expert - base, 0.0) * lambda_


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """Compute KL(softmax first‖softmax second) along the last dimension, kept: float64 (…, 1)."""
    import torch

    from evomerge.common.accelerator import as_float64

    p = torch.softmax(as_float64(first), -1) + 1e-8
    q = torch.softmax(as_float64(second), -1) + 1e-8
    return (p * torch.log(p / q)).sum(-1, keepdim=True)
