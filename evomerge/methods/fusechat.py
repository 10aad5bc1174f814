"""Weights by how much the experts changed: VaRM (FuseChat) and SCE (FuseChat 3.0)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np

from evomerge.methods.inner_products import blocks
from evomerge.methods.registry import Range, Tensor, View, merge_method
from evomerge.methods.spectra import Quantity, Spectrum, spectrum_of
from evomerge.methods.task_arithmetic import Lambda
from evomerge.methods.trimming import Trim, cut, trim_in_bracket


@dataclass(frozen=True)
class Energy:
    """Σ τ² of one expert's tensor."""

    value: float
    nbytes: int = 8


def energy(view: View, expert: int) -> Energy:
    """Add up an expert's τ² in float64, exactly up to blocks of 2¹⁵ entries."""
    sums = []
    for part in blocks(view):
        [tau] = view.taus(part, [expert])
        sums.append(tau.double().square().sum().item())
    return Energy(math.fsum(sums))


def ratios(energies: Sequence[float]) -> list[float]:
    """Energies divided by their sum; equal shares where that is zero."""
    total = math.fsum(energies)
    if total == 0:
        return [1 / len(energies) for _ in energies]
    return [value / total for value in energies]


def variation(
    view: View, *, lambda_: float, statistics: Sequence[Energy] | None = None
) -> Sequence[float]:
    """λE[τⱼ²]/ΣE[τ²]."""
    found = statistics or [energy(view, expert) for expert in range(len(view.experts))]
    return [lambda_ * share for share in ratios([one.value for one in found])]


@merge_method(
    reference="Wan et al. 2024, arXiv:2402.16107, eq. 4 (VaRM)",
    measure=variation,
    statistic=energy,
    relative=True,
)
def varm(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    lambda_: Lambda = 1.0,
    measured: Sequence[float],
) -> Tensor:
    """θ₀ + λ Σ wⱼτⱼ with wⱼ = E[τⱼ²]/ΣE[τ²], the mean taken over each tensor."""
    total = (experts[0] - base) * measured[0]
    for share, expert in zip(measured[1:], experts[1:], strict=True):
        total = total + (expert - base) * share
    return base + total


@dataclass(frozen=True)
class Variances:
    """How the variances of entries across experts spread, and where the task vectors' energy lies.

    Attributes:
        spectrum: counts of variances by bracket.
        positive: entries whose variance is not 0.
        energies: float64 (brackets, experts), Σ τ² over this bracket and those before it.
    """

    spectrum: Spectrum
    positive: int
    energies: np.ndarray

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.spectrum.nbytes + self.energies.nbytes


def variance(taus: list[Tensor]) -> Tensor:
    """Population variance across experts of every entry, times their number."""
    mean = sum(taus[1:], taus[0]) * (1 / len(taus))  # a division would cost more than all else
    squares = [(tau - mean) * (tau - mean) for tau in taus]
    return sum(squares[1:], squares[0])


def _variance_of(view: View) -> Quantity:
    return Quantity(view, tuple(range(len(view.experts))), variance)


def variances(view: View) -> Variances:
    """Count the variances by bin; add up τ² by bracket, in float64 and in the entries' order."""
    import torch

    found, positive = spectrum_of(_variance_of(view)), 0
    energies = np.zeros((len(found.floors), len(view.experts)))
    for part in blocks(view):
        taus = view.taus(part)
        spread = variance(taus)
        positive += int(torch.count_nonzero(spread))
        bracket = found.places(spread)
        for expert, tau in enumerate(taus):
            squares = tau.double().square().cpu().numpy()
            energies[:, expert] += np.bincount(bracket, squares, minlength=len(energies))
    return Variances(found, positive, energies.cumsum(0))


class Selection(NamedTuple):
    """The entries of greatest variance, and the experts' weights (S and C of SCE)."""

    trim: Trim
    weights: Sequence[float]


def selected(view: View, *, select_topk: float, statistics: Variances | None = None) -> Selection:
    """Entries by variance; weights by the energy of task vectors within them.

    The energy of whole brackets is known; that of the last one's entries is added up.
    """
    known = statistics or variances(view)
    quantity, n = _variance_of(view), view.base.numel()
    k = int(known.positive * select_topk) if select_topk < 1 else n
    if k <= 0 or k >= n or not known.spectrum.finite:
        total = known.energies[-1] if len(known.energies) and k > 0 else np.zeros(len(view.experts))
        [[whole]] = cut([quantity], [[k]], [known.spectrum])
        return Selection(whole, ratios(total.tolist()))
    kept, index = trim_in_bracket(quantity, k, known.spectrum)
    place = int(np.searchsorted(known.spectrum.counts, k))
    total = known.energies[place - 1].copy() if place else np.zeros(len(view.experts))
    for expert, tau in enumerate(view.taus(index)):
        total[expert] += np.sum(tau.double().square().cpu().numpy())
    return Selection(kept, ratios(total.tolist()))


@merge_method(
    reference="Yang et al. 2025, arXiv:2408.07990 (SCE)",
    measure=selected,
    joint=variances,
    relative=True,
)
def sce(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    select_topk: Annotated[float, Range(0.0, 1.0)] = 0.1,
    lambda_: Lambda = 1.0,
    measured: Selection,
) -> Tensor:
    """Select entries of high variance, calculate weights, erase minority signs.

    Of the entries that the experts do not agree on, the share `select_topk` of greatest variance
    is kept (all at 1). wᵢ = Σ τᵢ²/ΣΣ τ² over them. Entries whose sign is not that of Σ τ are left
    out; the rest is added with wᵢ divided by the weights that took part. mergekit takes equal
    weights where the energies' means add up to less than 1e-6, which is usual for finetuned
    language models; here only where they are zero.
    """
    import torch

    taus = [expert - base for expert in experts]
    kept = measured.trim.keep(variance(taus))
    parts = [torch.where(kept, tau, 0.0) for tau in taus]
    return base + weighted_consensus(parts, measured.weights) * lambda_


def weighted_consensus(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wτ/Σ w over the entries that agree with the sign of Σ τ (zero counts as positive)."""
    import torch

    positive = sum(parts[1:], parts[0]) >= 0
    total, divisor = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for weight, part in zip(weights, parts, strict=True):
        agrees = (((part > 0) & positive) | ((part < 0) & ~positive)).to(part.dtype)
        total = total + part * agrees * weight
        divisor = divisor + agrees * weight
    return total / torch.where(divisor == 0, 1.0, divisor)
