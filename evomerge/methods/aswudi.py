"""ASWUDI: WUDI's closed form on as many directions as each tensor's spectrum calls for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from evomerge.methods import Lambda, Tensor, View, merge_method
from evomerge.methods.core.merged_update import Scaled
from evomerge.methods.core.slices import Entries
from evomerge.methods.swudi import Directions, Start, directions, filtered


def count(values: Tensor, rule: str, shape: Sequence[int]) -> int:
    """Choose how many directions count, by the square roots s of the eigenvalues.

    Args:
        values: w, float64 (in,), falling.
        rule: `participation`: (Σ s)²/Σ s², rounded up; `threshold`: those above ω(β) times their
            median (Gavish & Donoho 2014, arXiv:1305.5870, the approximation of ω), β the ratio of
            the tensor's sides.
        shape: of the tensor.
    """
    import math

    import torch

    there = values[values > 0]
    if not len(there):
        return 0
    roots = there.sqrt()
    if rule == "participation":
        return min(len(there), math.ceil(float(roots.sum() ** 2 / there.sum())))
    beta = min(shape) / max(shape)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    return max(1, int((roots > omega * torch.median(roots)).sum()))


def adapted(
    view: View, *, rule: str, start: str, lambda_: float, statistics: Directions | None = None
) -> Scaled:
    """Take the whole step in the directions that count."""

    def weigh(values: Tensor) -> Tensor:
        import torch

        kept = count(values, rule, view.shape)
        return (torch.arange(len(values), device=values.device) < kept).to(values)

    return Scaled(Entries(filtered(view, statistics, start, weigh)), lambda_)


@merge_method(
    reference="ASWUDI, successor of OptMerge (Wei et al. 2026, arXiv:2505.19892), after its code",
    joint=directions,
    measure=adapted,
    relative=True,
    differentiable_in=("lambda",),
    copies=6,
    squares=4,
)
def aswudi(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    rule: Literal["participation", "threshold"] = "threshold",
    start: Start = "mean",
    lambda_: Lambda = 1.0,
    measured: Scaled,
) -> Tensor:
    """Take WUDI's minimum in the directions that stand out, and stay at a start in the others.

    As `swudi`, but f is 1 on a number of directions that each tensor's spectrum gives, and 0 on the
    others: √w's participation ratio (small models, LoRA) or those above Gavish and Donoho's
    threshold (language models).
    """
    return measured.added_to(base)
