"""Sums of task vectors τᵢ = θᵢ − θ₀: task arithmetic, TIES, and DARE over either.

Sparsified task vectors and the sign election are shared: the four methods differ in which entries
survive (`trim` by magnitude, `drop` at random) and in how survivors are added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from evomerge.methods.masks import At
from evomerge.methods.registry import PerExpert, Range, Tensor, View, merge_method, whole_view

Weight = Annotated[Sequence[float], PerExpert(1.0, low=-10.0, high=10.0)]
Density = Annotated[Sequence[float], PerExpert(0.5, low=0.0, high=1.0)]
Lambda = Annotated[float, Range(-10.0, 10.0)]


@merge_method(reference="Ilharco et al. 2023, arXiv:2212.04089")
def task_arithmetic(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    lambda_: Lambda = 1.0,
    normalize: bool = False,
) -> Tensor:
    """θ₀ + λ Σ wᵢτᵢ; with `normalize`, the sum is divided by Σ wᵢ."""
    return base + _sum((e - base for e in experts), weight, base, normalize) * lambda_


@dataclass(frozen=True)
class Trim:
    """Which entries of a task vector are its k largest by |τ| in float32.

    Kept are the entries above `threshold`, and those equal to it up to index `last`: of tied
    entries the lower index comes first.
    """

    threshold: float
    last: int

    def keep(self, tau: Tensor, start: int) -> Tensor:
        """Boolean mask over a slice that begins at flat index `start`."""
        import torch

        magnitude = tau.abs().float()
        if self.last >= start + tau.numel() - 1:
            return magnitude >= self.threshold
        index = torch.arange(start, start + tau.numel(), device=tau.device).view(tau.shape)
        return (magnitude > self.threshold) | ((magnitude == self.threshold) & (index <= self.last))


def trims(view: View, *, density: Sequence[float]) -> list[Trim]:
    """One `Trim` per expert: k = max(1, int(density·n)) entries kept, none at density 0."""
    return [_trim(view, expert, value) for expert, value in enumerate(density)]


@merge_method(reference="Yadav et al. 2023, arXiv:2306.01708, algorithm 1", measure=trims)
def ties(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    density: Density,
    lambda_: Lambda = 1.0,
    normalize: bool = True,
    at: At | None = None,
    measured: Sequence[Trim] | None = None,
) -> Tensor:
    """Trim, elect sign, merge disjointly.

    Each τᵢ keeps its largest `density` share by |τ|, per tensor (the paper trims over the whole
    model). The elected sign is that of Σ wᵢτᵢ (zero counts as positive). Entries that agree with it
    are summed with their weights and, with `normalize`, divided by the weights that took part.
    """
    kept = trims(whole_view(base, experts), density=density) if measured is None else measured
    start = 0 if at is None else at.start
    taus = ((e - base) for e in experts)
    trimmed = [tau * trim.keep(tau, start) for tau, trim in zip(taus, kept, strict=True)]
    return base + _elect_and_sum(trimmed, weight, normalize) * lambda_


@merge_method(reference="Yu et al. 2024, arXiv:2311.03099, with task arithmetic")
def dare_linear(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    density: Density,
    lambda_: Lambda = 1.0,
    normalize: bool = False,
    at: At | None = None,
) -> Tensor:
    """Drop entries at random, rescale by 1/density, then task arithmetic.

    An entry of τᵢ survives with probability `density`, by a mask that depends only on the recipe's
    seed, the tensor, the expert and the index.
    """
    return base + _sum(_drop(base, experts, density, at), weight, base, normalize) * lambda_


@merge_method(reference="Yu et al. 2024, arXiv:2311.03099, with TIES' sign election")
def dare_ties(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    density: Density,
    lambda_: Lambda = 1.0,
    normalize: bool = True,
    at: At | None = None,
) -> Tensor:
    """Drop entries at random, rescale by 1/density, then elect signs and merge as TIES does."""
    dropped = list(_drop(base, experts, density, at))
    return base + _elect_and_sum(dropped, weight, normalize) * lambda_


def _drop(
    base: Tensor, experts: Sequence[Tensor], density: Sequence[float], at: At | None
) -> Iterator[Tensor]:
    """τᵢ ⊙ mᵢ / densityᵢ (DARE, eq. 1); zero at density 0."""
    at = at or At(0, "", [str(i) for i in range(len(experts))])
    for index, (expert, keep) in enumerate(zip(experts, density, strict=True)):
        tau = expert - base
        yield tau * at.keep(index, tau, keep) / keep if keep > 0 else tau * 0


def _sum(taus: Iterator[Tensor], weight: Sequence[float], base: Tensor, normalize: bool) -> Tensor:
    total = base.new_zeros(base.shape)
    for value, tau in zip(weight, taus, strict=True):
        total += tau * value
    divisor = math.fsum(weight)
    return total / divisor if normalize and abs(divisor) >= 1e-8 else total


def _elect_and_sum(taus: Sequence[Tensor], weight: Sequence[float], normalize: bool) -> Tensor:
    """TIES' steps two and three on sparsified task vectors."""
    weighted = [tau * value for tau, value in zip(taus, weight, strict=True)]
    positive = sum(weighted[1:], weighted[0]) >= 0
    total = weighted[0].new_zeros(weighted[0].shape)
    divisor = total.clone()
    for value, part in zip(weight, weighted, strict=True):
        agrees = (((part > 0) & positive) | ((part < 0) & ~positive)).to(part.dtype)
        total += part * agrees
        divisor += agrees * value
    return total / divisor.masked_fill(divisor == 0, 1) if normalize else total


def _trim(view: View, expert: int, density: float) -> Trim:
    """Select the k-th largest |τ| exactly, in passes of bounded memory (a radix selection).

    Non-negative float32 values order as their bit patterns do, so three histograms of 11, 10 and
    10 bits find the threshold, and a fourth pass the last of the tied entries that is kept.
    """
    n = view.base.numel()
    if density <= 0 or n == 0:
        return Trim(math.inf, -1)
    if density >= 1:
        return Trim(0.0, n - 1)
    wanted = max(1, int(density * n))
    prefix = 0
    for shift, width in ((20, 11), (10, 10), (0, 10)):
        digit, above = _kth_digit(view, expert, prefix, shift, width, wanted)
        prefix, wanted = (prefix << width) | digit, wanted - above
    return Trim(_float(prefix), _index_of_match(view, expert, prefix, wanted))


def _bits(view: View, expert: int) -> Iterator[Tensor]:
    """|τ| in float32 as int32 bit patterns, block by block."""
    import torch

    for tau in view.task_vector(expert):
        yield tau.abs().float().view(torch.int32)


def _kth_digit(
    view: View, expert: int, prefix: int, shift: int, width: int, wanted: int
) -> tuple[int, int]:
    """The next digit of the `wanted`-th largest pattern, and how many patterns lie above it."""
    import torch

    counts = torch.zeros(1 << width, dtype=torch.int64)
    for bits in _bits(view, expert):
        digits = bits >> shift
        if shift < 20:
            digits = digits[(digits >> width) == prefix] & ((1 << width) - 1)
        counts += torch.bincount(digits, minlength=1 << width).cpu()
    from_top = counts.flip(0).cumsum(0)
    place = int((from_top < wanted).sum())
    return (1 << width) - 1 - place, int(from_top[place - 1]) if place else 0


def _index_of_match(view: View, expert: int, pattern: int, nth: int) -> int:
    """Flat index of the `nth` entry (from 1) whose bits equal `pattern`."""
    start = 0
    for bits in _bits(view, expert):
        matches = (bits == pattern).nonzero().flatten()
        if nth <= matches.numel():
            return start + int(matches[nth - 1])
        nth -= matches.numel()
        start += bits.numel()
    raise AssertionError("the histograms counted a pattern that is not there")


def _float(bits: int) -> float:
    import struct

    return float(struct.unpack("<f", struct.pack("<I", bits))[0])
