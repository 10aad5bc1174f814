"""Localize-and-Stitch: each expert's largest entries, averaged where they overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from evomerge.methods import Lambda, PerExpert, Tensor, merge_method
from evomerge.methods.core.magnitude_histograms import magnitude_histogram
from evomerge.methods.core.trim import Trim, trims


@merge_method(
    reference="He et al. 2024, arXiv:2408.13656 (dataless), eqs. 4 and 5",
    measure=trims,
    statistic=magnitude_histogram,
    relative=True,
    differentiable_in=("lambda",),
)
def localize_and_stitch(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    density: Annotated[Sequence[float], PerExpert(0.1, low=0.0, high=1.0)],
    lambda_: Lambda = 1.0,
    measured: Sequence[Trim],
) -> Tensor:
    """Add each expert's top `density` share by |τ|, averaged where they overlap.

    θ₀ + λ Σ mᵢ ⊙ τᵢ/Σ m.

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
