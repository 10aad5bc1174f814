"""RAM+, per tensor: RAM with what only one expert changed enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from evomerge.methods import Lambda, Range, Tensor, View, merge_method
from evomerge.methods.core.inner_products import blocks
from evomerge.methods.ram import REFERENCE, Epsilon, changed_by


def boosts(view: View, *, r: float, alpha: float, epsilon: float) -> Sequence[float]:
    """Compute 1 + r·min(ρ, α) per expert, ρ its shared entries over those it alone changed."""
    import torch

    shared, alone = [0] * len(view.experts), [0] * len(view.experts)
    threshold = torch.tensor(epsilon, dtype=view.dtype)
    for part in blocks(view):
        changed, count = changed_by(view.taus(part), threshold)
        for expert, own in enumerate(changed):
            shared[expert] += int((own * (count > 1)).sum())
            alone[expert] += int((own * (count == 1)).sum())
    return [
        1 + r * min(both / max(one, epsilon, 1e-12), alpha)
        for both, one in zip(shared, alone, strict=True)
    ]


@merge_method(
    reference=f"{REFERENCE} (RAM+, per tensor)",
    measure=boosts,
    relative=True,
    differentiable_in=("r", "lambda"),
)
def ramplus_tl(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    r: Annotated[float, Range(0.0, 10.0)] = 0.1,
    alpha: Annotated[float, Range(0.0, 10.0)] = 0.2,
    epsilon: Epsilon = 1e-5,
    lambda_: Lambda = 1.0,
    measured: Sequence[float],
) -> Tensor:
    """Merge as RAM does, with what only one expert changed enlarged by up to 1 + r·α.

    An expert's factor is 1 + r·min(ρ, α), ρ the number of its changed entries that others changed
    too over the number of those that it alone changed, in this tensor.
    """
    taus = [expert - base for expert in experts]
    changed, count = changed_by(taus, epsilon)
    parts = []
    for tau, own, boost in zip(taus, changed, measured, strict=True):
        alone = (count == 1).to(tau.dtype)
        parts.append(tau * own * (alone * (boost - 1) + 1))
    return base + sum(parts[1:], parts[0]) / count.clamp(min=1.0) * lambda_
