"""RegMean: the linear layers that come nearest to every expert's outputs on its own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from evomerge.methods import Lambda, Range, Tensor, View, merge_method
from evomerge.methods.core.decompositions import times_inverse
from evomerge.methods.core.merged_update import Scaled, Update, around_mean
from evomerge.methods.core.slices import Entries


def solution(view: View, *, reduce: float) -> Update:
    """Merge the task vectors for one value of `reduce`; a tensor without Gram matrices by the mean.

    W minimises Σ ‖Xᵢ(W − Wᵢ)ᵀ‖², eq. 2: with δᵢ = τᵢ − τ̄, it is τ̄ + (Σ δᵢGᵢ)(Σ Gᵢ)⁻¹.
    """

    def shrunk(gram: Tensor) -> Tensor:  # off the diagonal, eq. 3
        return gram * reduce + gram.diagonal().diag() * (1 - reduce)

    return around_mean(view, "gram", shrunk, times_inverse)


def scaled(
    view: View, *, reduce: float, lambda_: float, statistics: Update | None = None
) -> Scaled:
    """Scale the solution."""
    return Scaled(Entries((statistics or solution(view, reduce=reduce)).values), lambda_)


@merge_method(
    reference="Jin et al. 2023, arXiv:2212.09849, eqs. 2 and 3",
    joint=solution,
    measure=scaled,
    calibrated=["gram"],
    relative=True,
    differentiable_in=("lambda",),
    copies=6,
    squares=4,
)
def regmean(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    reduce: Annotated[float, Range(0.0, 1.0, step=0.05)] = 0.9,
    lambda_: Lambda = 1.0,
    measured: Scaled,
) -> Tensor:
    """Keep each expert's outputs on its own inputs: θ₀ + λ(W − θ₀), W = (Σ WᵢGᵢ)(Σ Gᵢ)⁻¹.

    Gᵢ = XᵢᵀXᵢ/T of a linear layer's inputs on the expert's data; `reduce` multiplies what is off
    its diagonal (0: a mean weighed by activations). It counts in steps of 0.05: the first candidate
    with a value solves for it, and later ones add the solution, which is kept. Tensors without Gram
    matrices (norms, biases, embeddings, stacked experts) are averaged, as are inputs that no expert
    saw.
    """
    return measured.added_to(base)
