"""Balanced task arithmetic: every expert's change of a tensor is equally long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from evomerge.methods import Lambda, PerExpert, Range, Tensor, View, merge_method
from evomerge.methods.core.inner_products import Gram, task_vectors_gram


def lengths(view: View, known: Gram | None) -> list[float]:
    """Return each task vector's Frobenius norm."""
    products = (known or task_vectors_gram(view)).products
    return [math.sqrt(max(float(products[i, i]), 0.0)) for i in range(len(products))]


def balanced(
    view: View, *, weight: Sequence[float], length: float, statistics: Gram | None = None
) -> list[float]:
    """Return the factors that make the task vectors `length` long, or as long as their mean."""
    norms = lengths(view, statistics)
    there = [norm for norm in norms if norm > 0]
    common = length or (math.fsum(there) / len(there) if there else 0.0)
    own = zip(weight, norms, strict=True)
    return [w * common / norm if norm > 0 else 0.0 for w, norm in own]


@merge_method(
    reference="Wei et al. 2025, arXiv:2501.01230, λᵢ = η/‖τᵢ‖ alone",
    measure=balanced,
    joint=task_vectors_gram,
    relative=True,
    differentiable_in=("weight", "lambda"),
)
def balanced_task_arithmetic(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Annotated[Sequence[float], PerExpert(0.3, low=-10.0, high=10.0)],
    length: Annotated[float, Range(0.0, 10.0)] = 0.0,
    lambda_: Lambda = 1.0,
    measured: Sequence[float],
) -> Tensor:
    """Add task vectors that are equally long in each tensor: θ₀ + λ Σ wᵢητᵢ/‖τᵢ‖.

    η is the experts' mean ‖τ‖ of the tensor, so that equally long ones give task arithmetic; with
    a `length` above 0 it is that, for all tensors (the paper: 0.07, with weights of 1).
    """
    total = (experts[0] - base) * measured[0]
    for factor, expert in zip(measured[1:], experts[1:], strict=True):
        total = total + (expert - base) * factor
    return base + total * lambda_
