"""Multislerp: a barycentre of several models on the sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evomerge.methods import Lambda, Tensor, View, Weight, merge_method
from evomerge.methods.core.inner_products import Grams, grams
from evomerge.methods.core.span import Combination, combination, norm, products_of


def barycentre(
    view: View,
    *,
    weight: Sequence[float],
    normalize: bool,
    task_vectors: bool,
    lambda_: float,
    statistics: Grams | None = None,
) -> Combination:
    """Compute the experts' factors in multislerp."""
    w = np.array(weight)
    if normalize:
        with np.errstate(divide="ignore", invalid="ignore"):
            w = w / w.sum()
    shares = _multislerp_shares(products_of(view, statistics, task_vectors), w)
    return combination([float(lambda_ * share) for share in shares], lambda_, task_vectors)


def _multislerp_shares(gram: np.ndarray, w: np.ndarray, epsilon: float = 1e-8) -> np.ndarray:
    norms = np.sqrt(gram.diagonal())
    if len(w) == 1:
        return w
    # 1. the weighted mean direction of the unit vectors, in coordinates of the vectors
    mean = w / (norms + epsilon)
    length = norm(mean, gram)
    if length < epsilon:
        return w if len(w) == 2 else np.full(len(w), math.nan)
    mean = mean / length
    # 2. the weighted sum of their projections on its tangent space
    dots = gram @ mean / (norms + epsilon)
    tangent = w / (norms + epsilon) - (w @ dots) * mean
    size = norm(tangent, gram) + epsilon
    # 3. back to the sphere by the exponential map, at the weighted mean norm
    point = mean * math.cos(size) + tangent * (math.sin(size) / size)
    return point * float(norms @ w)


@merge_method(
    reference="Goddard 2024, goddard.blog (multislerp)",
    measure=barycentre,
    joint=grams,
    differentiable_in=("weight", "lambda"),
)
def multislerp(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    normalize: bool = True,
    task_vectors: bool = False,
    lambda_: Lambda = 1.0,
    measured: Combination,
) -> Tensor:
    """Take the barycentre on the sphere: a tangent step from the mean direction, mean norm.

    With uᵢ = θᵢ/‖θᵢ‖ (or τᵢ/‖τᵢ‖ with `task_vectors`) and m the direction of Σ wᵢuᵢ, the result is
    exp_m(Σ wᵢ(uᵢ − ⟨uᵢ, m⟩m)) · Σ wᵢ‖θᵢ‖, per tensor; `normalize` divides the weights by their sum.
    Merged is θ₀ + λ(result − θ₀). Directions that cancel give NaN (a failed candidate), but two
    such experts their linear interpolation.
    """
    return measured.of(base, experts)
