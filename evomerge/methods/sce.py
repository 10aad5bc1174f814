"""SCE (FuseChat 3.0): select entries, calculate weights, erase minority signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np

from evomerge.methods import Lambda, Range, Tensor, View, merge_method
from evomerge.methods.core.combine import is_positive, is_zero, sign_of
from evomerge.methods.core.inner_products import blocks
from evomerge.methods.core.magnitude_histograms import MagnitudeHistogram, Ranking, histogram_of
from evomerge.methods.core.trim import Trim, cut, trim_within_bin
from evomerge.methods.varm import ratios


@dataclass(frozen=True)
class Variances:
    """The histogram of entries' variances across experts, and where their task vectors are large.

    Attributes:
        histogram: counts of variances by bin.
        positive: entries whose variance is not 0.
        energies: float64 (bins, experts), Σ τ² over the entries of this bin and those before it.
    """

    histogram: MagnitudeHistogram
    positive: int
    energies: np.ndarray

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.histogram.nbytes + self.energies.nbytes


def variance(taus: list[Tensor]) -> Tensor:
    """Compute the population variance across experts of every entry, times their number."""
    mean = sum(taus[1:], taus[0]) * (1 / len(taus))  # a division would cost more than all else
    squares = [(tau - mean) * (tau - mean) for tau in taus]
    return sum(squares[1:], squares[0])


def _by_variance(view: View) -> Ranking:
    return Ranking(view, tuple(range(len(view.experts))), variance)


def variances(view: View) -> Variances:
    """Count the variances by bin; add up τ² by bin, in float64 and in the entries' order."""
    import torch

    from evomerge.common.accelerator import as_float64

    # 1. the histogram of the variances
    found, positive = histogram_of(_by_variance(view)), 0
    energies = np.zeros((len(found.floors), len(view.experts)))
    # 2. how many are not 0, and the experts' energy in each bin
    for part in blocks(view):
        taus = view.taus(part)
        spread = variance(taus)
        positive += int(torch.count_nonzero(spread))
        bins = found.bins_of(spread)
        for expert, tau in enumerate(taus):
            squares = as_float64(tau).square().cpu().numpy()
            energies[:, expert] += np.bincount(bins, squares, minlength=len(energies))
    return Variances(found, positive, energies.cumsum(0))


class Selection(NamedTuple):
    """The entries of greatest variance, and the experts' weights (S and C of SCE)."""

    trim: Trim
    weights: Sequence[float]


def selected(view: View, *, select_topk: float, statistics: Variances | None = None) -> Selection:
    """Select entries by variance, and weigh experts by the energy of τ within them.

    The energy of whole bins is known; that of the last one's entries is added up.
    """
    from evomerge.common.accelerator import as_float64

    # 1. k: the share of the entries whose variance is not 0
    known = statistics or variances(view)
    ranking, n = _by_variance(view), view.base.numel()
    k = int(known.positive * select_topk) if select_topk < 1 else n
    if k <= 0 or k >= n:
        total = known.energies[-1] if len(known.energies) and k > 0 else np.zeros(len(view.experts))
        [[whole]] = cut([ranking], [[k]], [known.histogram])
        return Selection(whole, ratios(total.tolist()))
    # 2. the k-th largest variance, and what of its bin is kept
    kept, index = trim_within_bin(ranking, k, known.histogram)
    # 3. the energy of the whole bins above, and of those entries
    place = int(np.searchsorted(known.histogram.counts, k))
    total = known.energies[place - 1].copy() if place else np.zeros(len(view.experts))
    for expert, tau in enumerate(view.taus(index)):
        total[expert] += np.sum(as_float64(tau).square().cpu().numpy())
    return Selection(kept, ratios(total.tolist()))


@merge_method(
    reference="Yang et al. 2025, arXiv:2408.07990 (SCE)",
    measure=selected,
    joint=variances,
    relative=True,
    differentiable_in=("lambda",),
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

    # select; calculate (in the measure); erase
    taus = [expert - base for expert in experts]
    kept = measured.trim.keep(variance(taus))
    parts = [torch.where(kept, tau, 0.0) for tau in taus]
    return base + weighted_consensus(parts, measured.weights) * lambda_


def weighted_consensus(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Compute Σ wτ/Σ w over the entries with the sign of Σ τ (zero counts as positive)."""
    import torch

    sign = sign_of(sum(parts[1:], parts[0]))
    total, divisor = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for weight, part in zip(weights, parts, strict=True):
        share = is_positive(part * sign) * weight
        total = total + part * share
        divisor = divisor + share
    return total / (divisor + is_zero(divisor))
