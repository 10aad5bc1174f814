"""Sums of task vectors τᵢ = θᵢ − θ₀: task arithmetic and TIES."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from evomerge.methods.registry import PerExpert, Range, Tensor, View, merge_method
from evomerge.methods.spectra import spectrum
from evomerge.methods.trimming import Trim, trims

Weight = Annotated[Sequence[float], PerExpert(1.0, low=-10.0, high=10.0)]
Density = Annotated[Sequence[float], PerExpert(0.5, low=0.0, high=1.0)]
Lambda = Annotated[float, Range(-10.0, 10.0)]


def shares(_: View, *, weight: Sequence[float], lambda_: float, normalize: bool) -> Sequence[float]:
    """λwᵢ, divided by Σ wᵢ with `normalize` unless that is zero."""
    divisor = math.fsum(weight)
    scale = lambda_ / divisor if normalize and abs(divisor) >= 1e-8 else lambda_
    return [scale * value for value in weight]


@merge_method(reference="Ilharco et al. 2023, arXiv:2212.04089", measure=shares, relative=True)
def task_arithmetic(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    lambda_: Lambda = 1.0,
    normalize: bool = False,
    measured: Sequence[float],
) -> Tensor:
    """θ₀ + λ Σ wᵢτᵢ; with `normalize`, the sum is divided by Σ wᵢ."""
    total = (experts[0] - base) * measured[0]
    for share, expert in zip(measured[1:], experts[1:], strict=True):
        total = total + (expert - base) * share
    return base + total


@merge_method(
    reference="Yadav et al. 2023, arXiv:2306.01708, algorithm 1",
    measure=trims,
    statistic=spectrum,
    relative=True,
)
def ties(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    density: Density,
    lambda_: Lambda = 1.0,
    normalize: bool = True,
    measured: Sequence[Trim],
) -> Tensor:
    """Trim, elect sign, merge disjointly.

    Each τᵢ keeps its largest `density` share by |τ|, per tensor (the paper trims over the whole
    model). The elected sign is that of Σ wᵢτᵢ (zero counts as positive). Entries that agree with it
    are summed with their weights and, with `normalize`, divided by the weights that took part.
    """
    parts = [
        trim.of(expert - base) * value
        for value, trim, expert in zip(weight, measured, experts, strict=True)
    ]
    return base + elect_and_sum(parts, weight, normalize) * lambda_


def elect_and_sum(parts: Sequence[Tensor], weight: Sequence[float], normalize: bool) -> Tensor:
    """TIES' steps two and three: elect signs of sparsified task vectors and add those that agree.

    Args:
        parts: wᵢτᵢ, sparsified, of one shape.
        weight: wᵢ; what `normalize` divides by where the expert took part.
    """
    import torch

    positive = sum(parts[1:], parts[0]) >= 0
    total = torch.zeros_like(parts[0])
    divisor = torch.zeros_like(parts[0])
    for value, part in zip(weight, parts, strict=True):
        agrees = (((part > 0) & positive) | ((part < 0) & ~positive)).to(part.dtype)
        total = total + part * agrees
        divisor = divisor + agrees * value
    return total / torch.where(divisor == 0, 1.0, divisor) if normalize else total
