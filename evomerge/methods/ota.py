"""OTA: task vectors masked by Fisher saliency, averaged by the curvature that Adam saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from evomerge.methods import Lambda, PerExpert, Tensor, View, merge_method
from evomerge.methods.core.calibrated import fisher_trims, roots_of, saliency_histogram
from evomerge.methods.core.magnitude_histograms import MagnitudeHistogram
from evomerge.methods.core.slices import Entries

_FLOOR = 1e-6
"""ε, in units of the curvature of the model whose curvature is largest."""


class Curved(NamedTuple):
    """What each expert keeps, and the curvature that weighs it.

    Attributes:
        trims: one per expert.
        curvatures: vᵖ, one per expert, entry by entry; none where the tensor has none.
    """

    trims: Sequence[Any]
    curvatures: Sequence[Any]


def curved(
    view: View,
    *,
    density: Sequence[float],
    power: str,
    statistics: Sequence[MagnitudeHistogram] | None = None,
) -> Curved:
    """Find the masks (FFG), and the curvatures in units of the largest model's."""
    largest = max(view.rms, default=0.0)
    scale = 1 / largest if largest > 0 else 0.0
    if power == "half":
        curvatures = roots_of(view, scale)
    else:
        curvatures = [Entries(fisher * scale) for fisher in view.calibrated.get("fisher", ())]
    return Curved(fisher_trims(view, density, statistics), curvatures)


@merge_method(
    reference="Mahdavinia et al. 2025, arXiv:2509.11167 (OTA with FFG)",
    measure=curved,
    statistic=saliency_histogram,
    calibrated=["fisher"],
    relative=True,
    differentiable_in=("weight", "lambda"),
    copies=2,
)
def ota(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Annotated[Sequence[float], PerExpert(1.0, low=0.0, high=10.0)],
    density: Annotated[Sequence[float], PerExpert(0.4, low=0.0, high=1.0)],
    power: Literal["half", "one"] = "half",
    lambda_: Lambda = 1.0,
    measured: Curved,
) -> Tensor:
    """Average masked task vectors by curvature: θ₀ + λ Σ wPmτ/Σ wPm, P = vᵖ + ε.

    v is Adam's second moment (`exp_avg_sq`) or the diagonal Fisher, p a `power` of one half or one;
    m keeps the share `density` of entries of largest v ⊙ τ² of each tensor (the paper: of the
    model). Entries that no expert keeps stay the base's. With a constant v it is the mean of what
    a trim by magnitude leaves; tensors without a Fisher are merged so.
    """
    import torch

    total, divisor = torch.zeros_like(base), torch.zeros_like(base)
    for i, expert in enumerate(experts):
        tau = expert - base
        share = measured.trims[i].keep(tau).to(tau.dtype) * weight[i]
        if measured.curvatures:
            share = share * (measured.curvatures[i].to(tau.dtype) + _FLOOR)
        total = total + tau * share
        divisor = divisor + share
    return base + total / torch.where(divisor > 0, divisor, 1.0) * lambda_
