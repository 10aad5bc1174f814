"""Reinforced agent merging: the mean of what experts share, and whole what only one changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from evomerge.methods.inner_products import blocks
from evomerge.methods.registry import Range, Tensor, View, merge_method
from evomerge.methods.task_arithmetic import Lambda

Epsilon = Annotated[float, Range(0.0, 1.0)]
_REFERENCE = "arXiv:2601.13572 (RAM); as in mergekit 0.1.5"


def _changed(taus: Sequence[Tensor], epsilon: Any) -> tuple[list[Tensor], Tensor]:
    """Which entries each expert changed, and by how many experts each was."""
    changed = [(tau.abs() > epsilon).to(tau.dtype) for tau in taus]
    return changed, sum(changed[1:], changed[0])


@merge_method(reference=_REFERENCE, relative=True)
def ram(
    base: Tensor, experts: Sequence[Tensor], *, epsilon: Epsilon = 1e-5, lambda_: Lambda = 1.0
) -> Tensor:
    """θ₀ + λ times the mean of τ over the experts that changed the entry by more than ε."""
    taus = [expert - base for expert in experts]
    changed, count = _changed(taus, epsilon)
    parts = [tau * own for tau, own in zip(taus, changed, strict=True)]
    return base + sum(parts[1:], parts[0]) / count.clamp(min=1.0) * lambda_


def boosts(view: View, *, r: float, alpha: float, epsilon: float) -> Sequence[float]:
    """1 + r·min(ρ, α) per expert, ρ the ratio of its shared entries to those it alone changed."""
    import torch

    shared, alone = [0] * len(view.experts), [0] * len(view.experts)
    threshold = torch.tensor(epsilon, dtype=view.dtype)
    for part in blocks(view):
        changed, count = _changed(view.taus(part), threshold)
        for expert, own in enumerate(changed):
            shared[expert] += int((own * (count > 1)).sum())
            alone[expert] += int((own * (count == 1)).sum())
    return [
        1 + r * min(both / max(one, epsilon, 1e-12), alpha)
        for both, one in zip(shared, alone, strict=True)
    ]


@merge_method(reference=f"{_REFERENCE} (RAM+, per tensor)", measure=boosts, relative=True)
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
    """RAM, with what only one expert changed enlarged by up to 1 + r·α.

    An expert's factor is 1 + r·min(ρ, α), ρ the number of its changed entries that others changed
    too over the number of those that it alone changed, in this tensor.
    """
    taus = [expert - base for expert in experts]
    changed, count = _changed(taus, epsilon)
    parts = []
    for tau, own, boost in zip(taus, changed, measured, strict=True):
        alone = (count == 1).to(tau.dtype)
        parts.append(tau * own * (alone * (boost - 1) + 1))
    return base + sum(parts[1:], parts[0]) / count.clamp(min=1.0) * lambda_
