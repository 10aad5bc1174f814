"""Sums of task vectors τᵢ = θᵢ − θ₀: task arithmetic, TIES, and DARE over either.

Sparsified task vectors and the sign election are shared: the four methods differ in which entries
survive (`Trim` by magnitude, `At.keep` at random) and in how survivors are added up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from evomerge.methods.masks import At, limits
from evomerge.methods.registry import PerExpert, Range, Tensor, View, merge_method
from evomerge.methods.trimming import Trim, spectrum, trims

Weight = Annotated[Sequence[float], PerExpert(1.0, low=-10.0, high=10.0)]
Density = Annotated[Sequence[float], PerExpert(0.5, low=0.0, high=1.0)]
Lambda = Annotated[float, Range(-10.0, 10.0)]


def shares(_: View, *, weight: Sequence[float], lambda_: float, normalize: bool) -> Sequence[float]:
    """λwᵢ, divided by Σ wᵢ with `normalize` unless that is zero."""
    divisor = math.fsum(weight)
    scale = lambda_ / divisor if normalize and abs(divisor) >= 1e-8 else lambda_
    return [scale * value for value in weight]


@merge_method(reference="Ilharco et al. 2023, arXiv:2212.04089", measure=shares)
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
    reference="Yadav et al. 2023, arXiv:2306.01708, algorithm 1", measure=trims, statistic=spectrum
)
def ties(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    density: Density,
    lambda_: Lambda = 1.0,
    normalize: bool = True,
    at: At,
    measured: Sequence[Trim],
) -> Tensor:
    """Trim, elect sign, merge disjointly.

    Each τᵢ keeps its largest `density` share by |τ|, per tensor (the paper trims over the whole
    model). The elected sign is that of Σ wᵢτᵢ (zero counts as positive). Entries that agree with it
    are summed with their weights and, with `normalize`, divided by the weights that took part.
    """
    parts = []
    for value, trim, expert in zip(weight, measured, experts, strict=True):
        tau = expert - base
        parts.append(tau * trim.keep(tau, at.start) * value)
    return base + _elect_and_sum(parts, weight, normalize) * lambda_


class Dropout(NamedTuple):
    """What DARE needs of the densities.

    Attributes:
        limits: int32 (experts,), for `At.keep`.
        shares: one factor per expert, 1/density included; zero at density 0.
    """

    limits: Tensor
    shares: Sequence[float]


def rescaled_shares(
    view: View,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
) -> Dropout:
    """λwᵢ/densityᵢ, divided by Σ wᵢ with `normalize` unless that is zero."""
    plain = shares(view, weight=weight, lambda_=lambda_, normalize=normalize)
    return Dropout(limits(density), _rescaled(plain, density))


@merge_method(
    reference="Yu et al. 2024, arXiv:2311.03099, with task arithmetic", measure=rescaled_shares
)
def dare_linear(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    density: Density,
    lambda_: Lambda = 1.0,
    normalize: bool = False,
    at: At,
    measured: Dropout,
) -> Tensor:
    """Drop entries at random, rescale by 1/density, then task arithmetic.

    An entry of τᵢ survives with probability `density`, by a mask that depends only on the recipe's
    seed, the tensor, the expert and the index.
    """
    parts = _drop(base, experts, measured, at)
    return base + sum(parts[1:], parts[0])


def rescaled(_: View, *, weight: Sequence[float], density: Sequence[float]) -> Dropout:
    """wᵢ/densityᵢ."""
    return Dropout(limits(density), _rescaled(weight, density))


@merge_method(
    reference="Yu et al. 2024, arXiv:2311.03099, with TIES' sign election", measure=rescaled
)
def dare_ties(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    density: Density,
    lambda_: Lambda = 1.0,
    normalize: bool = True,
    at: At,
    measured: Dropout,
) -> Tensor:
    """Drop entries at random, rescale by 1/density, then elect signs and merge as TIES does."""
    parts = _drop(base, experts, measured, at)
    return base + _elect_and_sum(parts, weight, normalize) * lambda_


def _drop(base: Tensor, experts: Sequence[Tensor], dropout: Dropout, at: At) -> list[Tensor]:
    """τᵢ ⊙ mᵢ (DARE, eq. 1) times its share."""
    parts = []
    for index, (expert, share) in enumerate(zip(experts, dropout.shares, strict=True)):
        tau = expert - base
        parts.append(tau * at.keep(index, tau, dropout.limits[index]) * share)
    return parts


def _rescaled(weight: Sequence[float], density: Sequence[float]) -> list[float]:
    return [w / keep if keep > 0 else 0.0 for w, keep in zip(weight, density, strict=True)]


def _elect_and_sum(parts: Sequence[Tensor], weight: Sequence[float], normalize: bool) -> Tensor:
    """TIES' steps two and three on sparsified task vectors, already weighted."""
    import torch

    positive = sum(parts[1:], parts[0]) >= 0
    total = torch.zeros_like(parts[0])
    divisor = torch.zeros_like(parts[0])
    for value, part in zip(weight, parts, strict=True):
        agrees = (((part > 0) & positive) | ((part < 0) & ~positive)).to(part.dtype)
        total = total + part * agrees
        divisor = divisor + agrees * value
    return total / torch.where(divisor == 0, 1.0, divisor) if normalize else total
