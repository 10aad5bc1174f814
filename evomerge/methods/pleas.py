"""PLeaS: the linear layers that give the mean of the experts' outputs for the mean of their inputs.

Its permutations are `models.align`'s; this is the least squares after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from evomerge.methods import Lambda, Range, Tensor, View, merge_method
from evomerge.methods.core.decompositions import times_inverse
from evomerge.methods.core.merged_update import Scaled, Update, around_mean
from evomerge.methods.core.slices import Entries


def least_squares(view: View, *, ridge: float) -> Update:
    """Merge the task vectors for one value of `ridge`; a tensor without Gram matrices by the mean.

    W minimises ‖X̄Wᵀ − Ȳ‖², X̄ and Ȳ the means of Xᵢ and XᵢWᵢᵀ: with Hᵢ = XᵢᵀX̄/T and δᵢ = τᵢ − τ̄,
    it is τ̄ + (Σ δᵢHᵢ)(Σ Hᵢ)⁻¹.
    """

    def held_at_mean(pulled: Tensor, total: Tensor) -> Tensor:
        # Σ Hᵢ = N X̄ᵀX̄/T, symmetric but for rounding; a ridge regression towards the mean
        total.copy_((total + total.mT) / 2)
        size = float(total.diagonal().mean())
        total.mul_(1 - ridge).diagonal().add_(ridge * size)
        return times_inverse(pulled * (1 - ridge), total)

    return around_mean(view, "cross", lambda cross: cross, held_at_mean)


def scaled(view: View, *, ridge: float, lambda_: float, statistics: Update | None = None) -> Scaled:
    """Scale the solution."""
    return Scaled(Entries((statistics or least_squares(view, ridge=ridge)).values), lambda_)


@merge_method(
    reference="Nasery et al. 2024, arXiv:2407.02447; its least squares in closed form",
    experts=(2, None),
    joint=least_squares,
    measure=scaled,
    calibrated=["cross"],
    relative=True,
    differentiable_in=("lambda",),
    copies=6,
    squares=4,
)
def pleas(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    ridge: Annotated[float, Range(0.0, 1.0, step=0.05)] = 0.0,
    lambda_: Lambda = 1.0,
    measured: Scaled,
) -> Tensor:
    """Give the experts' mean outputs for their mean inputs: θ₀ + λ(W − θ₀), W = (Σ WᵢHᵢ)(Σ Hᵢ)⁻¹.

    Hᵢ = XᵢᵀX̄/T, with each expert's inputs Xᵢ of a linear layer and their mean X̄, all experts
    reading the same texts; bring them into one order first (`models.align`). `ridge` holds the
    result at the experts' mean: 0 is least squares, 1 the mean. It counts in steps of 0.05, as
    `regmean` counts `reduce`. Tensors without Gram matrices (norms, biases, embeddings, stacked
    experts) are averaged. The paper merges two experts; of more, the same means are taken.
    """
    return measured.added_to(base)
