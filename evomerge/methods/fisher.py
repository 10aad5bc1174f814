"""Fisher-weighted averaging: of each entry, the experts that were sure of it count more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from evomerge.methods import Lambda, PerExpert, Range, Tensor, View, merge_method
from evomerge.methods.core.calibrated import fishers_of


class Confidence(NamedTuple):
    """What each expert's entries are weighed by: F·factor + floor.

    Attributes:
        fishers: one per expert, entry by entry; none where the tensor has no Fisher.
        factors: one per expert.
        floors: one per expert.
    """

    fishers: Sequence[Any]
    factors: Sequence[float]
    floors: Sequence[float]


def confidence(view: View, *, weight: Sequence[float], normalize: bool, floor: float) -> Confidence:
    """Weigh the experts, in units of their models' Fisher (`normalize`), or of the largest."""
    fishers = fishers_of(view)
    if not fishers:
        return Confidence([], list(weight), [0.0] * len(weight))
    sizes = list(view.rms) if normalize else [max(view.rms)] * len(weight)
    factors = [w / size if size > 0 else 0.0 for w, size in zip(weight, sizes, strict=True)]
    # floor times the model's own size, brought to the same unit
    own = zip(factors, view.rms, strict=True)
    return Confidence(fishers, factors, [factor * floor * size for factor, size in own])


@merge_method(
    reference="Matena & Raffel 2022, arXiv:2111.09832, eq. 4; normalised as in MergeLM",
    measure=confidence,
    calibrated=["fisher"],
    relative=True,
    differentiable_in=("weight", "lambda"),
)
def fisher(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Annotated[Sequence[float], PerExpert(1.0, low=0.0, high=10.0)],
    normalize: bool = True,
    floor: Annotated[float, Range(0.0, 1.0)] = 1e-6,
    lambda_: Lambda = 1.0,
    measured: Confidence,
) -> Tensor:
    """Average task vectors by the Fisher information of each entry: θ₀ + λ Σ wF̃τ/Σ wF̃.

    F̃ = F/‖F‖ + `floor`, with each expert's diagonal Fisher F on its own data and ‖F‖ the root of
    its mean square over the whole model; without `normalize` experts keep their sizes, which may
    differ by orders of magnitude. Where no expert's F says anything, the floor makes it the mean.
    The average of weights and the one of task vectors are the same tensor. Tensors without a Fisher
    are averaged with the weights.
    """
    import torch

    total, divisor = torch.zeros_like(base), torch.zeros_like(base)
    for i, expert in enumerate(experts):
        own = measured.factors[i]
        if measured.fishers:
            own = measured.fishers[i].to(base.dtype) * own + measured.floors[i]
        total = total + (expert - base) * own
        divisor = divisor + own
    return base + total / torch.where(divisor > 0, divisor, 1.0) * lambda_
