"""MagMax: of each entry the largest change."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.methods import Lambda, Tensor, merge_method


@merge_method(reference="Marczak et al. 2024, arXiv:2407.06322, algorithm 1", relative=True)
def magmax(base: Tensor, experts: Sequence[Tensor], *, lambda_: Lambda = 0.5) -> Tensor:
    """Add λ times the τ of largest magnitude, entry by entry; of tied ones the later expert's."""
    import torch

    chosen = experts[0] - base
    for expert in experts[1:]:
        tau = expert - base
        chosen = torch.where(tau.abs() < chosen.abs(), chosen, tau)
    return base + chosen * lambda_
