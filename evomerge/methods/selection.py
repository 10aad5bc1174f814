"""Which experts an entry listens to: MagMax, Consensus (TALL masks), Localize-and-Stitch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from evomerge.methods.registry import PerExpert, Range, Tensor, merge_method
from evomerge.methods.spectra import spectrum
from evomerge.methods.task_arithmetic import Lambda
from evomerge.methods.trimming import Trim, trims


@merge_method(reference="Marczak et al. 2024, arXiv:2407.06322, algorithm 1", relative=True)
def magmax(base: Tensor, experts: Sequence[Tensor], *, lambda_: Lambda = 0.5) -> Tensor:
    """θ₀ + λ times the τ of largest magnitude, entry by entry; of tied ones the later expert's."""
    import torch

    chosen = experts[0] - base
    for expert in experts[1:]:
        tau = expert - base
        spoilt = (chosen + tau) * 0  # NaN where one is not finite, so that it is seen
        chosen = torch.where(tau.abs() < chosen.abs(), chosen, tau) + spoilt
    return base + chosen * lambda_


@merge_method(reference="Wang et al. 2024, arXiv:2405.07813, eqs. 5 and 6", relative=True)
def consensus(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    threshold: Annotated[Sequence[float], PerExpert(0.4, low=0.0, high=10.0)],
    agree: Annotated[float, Range(1.0, 16.0)] = 2.0,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """θ₀ + λ(m ⊙ Σ τ): entries that matter to at least `agree` experts.

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


@merge_method(
    reference="He et al. 2024, arXiv:2408.13656 (dataless), eqs. 4 and 5",
    measure=trims,
    statistic=spectrum,
    relative=True,
)
def localize_and_stitch(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    density: Annotated[Sequence[float], PerExpert(0.1, low=0.0, high=1.0)],
    lambda_: Lambda = 1.0,
    measured: Sequence[Trim],
) -> Tensor:
    """θ₀ + λ Σ mᵢ ⊙ τᵢ/Σ m: every expert's top `density` share by |τ|, averaged where they overlap.

    Shares are of each tensor (the paper: of the model).
    """
    parts, counts = [], []
    for trim, expert in zip(measured, experts, strict=True):
        tau = expert - base
        mask = trim.keep(tau).to(tau.dtype)
        parts.append(tau * mask)
        counts.append(mask)
    overlap = sum(counts[1:], counts[0]).clamp(min=1.0)
    return base + sum(parts[1:], parts[0]) / overlap * lambda_
