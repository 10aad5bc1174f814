"""VaRM (FuseChat): weights by how much the experts changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.methods import Lambda, Tensor, View, merge_method
from evomerge.methods.core.inner_products import blocks, exact_sum


@dataclass(frozen=True)
class Energy:
    """Σ τ² of one expert's tensor."""

    value: float
    nbytes: int = 8


def energy(view: View, expert: int) -> Energy:
    """Add up an expert's τ² in float64, exactly up to blocks of 2¹⁵ entries."""
    from evomerge.common.accelerator import as_float64

    taus = (view.taus(part, [expert])[0] for part in blocks(view))
    return Energy(exact_sum(as_float64(tau).square() for tau in taus))


def ratios(energies: Sequence[float]) -> list[float]:
    """Divide energies by their sum; equal shares where that is zero."""
    total = math.fsum(energies)
    if total == 0:
        return [1 / len(energies) for _ in energies]
    return [value / total for value in energies]


def variation(
    view: View, *, lambda_: float, statistics: Sequence[Energy] | None = None
) -> Sequence[float]:
    """Compute the experts' factors λE[τⱼ²]/ΣE[τ²]."""
    found = statistics or [energy(view, expert) for expert in range(len(view.experts))]
    return [lambda_ * share for share in ratios([one.value for one in found])]


@merge_method(
    reference="Wan et al. 2024, arXiv:2402.16107, eq. 4 (VaRM)",
    measure=variation,
    statistic=energy,
    relative=True,
    differentiable_in=("lambda",),
)
def varm(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    lambda_: Lambda = 1.0,
    measured: Sequence[float],
) -> Tensor:
    """Weigh experts by how much they changed: θ₀ + λ Σ wⱼτⱼ, wⱼ = E[τⱼ²]/ΣE[τ²] of each tensor."""
    total = (experts[0] - base) * measured[0]
    for share, expert in zip(measured[1:], experts[1:], strict=True):
        total = total + (expert - base) * share
    return base + total
