"""Nearswap: a small step towards the expert, in every entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from evomerge.methods import Lambda, Range, Tensor, merge_method


@merge_method(
    reference="alchemonaut 2024 (QuartetAnemoi-70B); as in mergekit", experts=(1, 1), relative=True
)
def nearswap(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    t: Annotated[float, Range(0.0, 1.0)] = 1e-4,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Move every entry at most `t` towards the expert's: θ₀ + λ min(1, t/|τ|) τ."""
    tau = experts[0] - base
    return base + tau * (t / tau.abs().clamp(min=1e-6)).clamp(max=1.0) * lambda_
