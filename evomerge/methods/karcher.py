"""Karcher mean: the centre of mass of several models on the sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evomerge.methods import Lambda, Tensor, View, Weight, merge_method
from evomerge.methods.core.inner_products import Grams, grams
from evomerge.methods.core.span import Combination, combination, norm, products_of

_STEPS = 10
_TOLERANCE = 1e-5


def centre(
    view: View,
    *,
    weight: Sequence[float],
    task_vectors: bool,
    lambda_: float,
    statistics: Grams | None = None,
) -> Combination:
    """Compute the experts' factors in a Karcher mean."""
    gram, w = products_of(view, statistics, task_vectors), np.array(weight)
    with np.errstate(divide="ignore", invalid="ignore"):
        w = w / w.sum()
    return combination([float(lambda_ * s) for s in _karcher(gram, w)], lambda_, task_vectors)


def _karcher(gram: np.ndarray, w: np.ndarray) -> np.ndarray:
    norms = np.sqrt(gram.diagonal())
    if len(w) == 1:
        return w
    # 1. unit vectors; those of no length take no part
    there = norms > _TOLERANCE
    if not there.any():
        return np.zeros(len(w))
    scale = np.where(there, norms, 1.0)
    cosines, alphas = gram / np.outer(scale, scale), np.where(there, w, 0.0)
    alphas = alphas / alphas.sum()
    # 2. from the mean direction, or the first vector where directions cancel
    mean = alphas.copy()
    length = norm(mean, cosines)
    mean = mean / length if length >= _TOLERANCE else np.eye(len(w))[there.argmax()]
    # 3. steps along the mean of the logarithms Σ wᵢ log_m uᵢ
    for _ in range(_STEPS):
        dots = np.clip(cosines @ mean, -1, 1)
        theta = np.arccos(dots)
        pull = np.zeros(len(w))
        far = theta >= _TOLERANCE
        pull[far] = alphas[far] * theta[far] / np.sin(theta[far])
        tangent = pull - (pull @ dots) * mean
        size = norm(tangent, cosines)
        if size < _TOLERANCE:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * tangent
        mean = mean / norm(mean, cosines)
    return float(w @ norms) * mean / scale


@merge_method(
    reference="Karcher 1977; merges: arXiv:2603.04972",
    measure=centre,
    joint=grams,
    differentiable_in=("weight", "lambda"),
)
def karcher(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    task_vectors: bool = False,
    lambda_: Lambda = 1.0,
    measured: Combination,
) -> Tensor:
    """Take the centre of mass of the experts' directions, times their weighted mean norm.

    At most 10 steps m ← exp_m(Σ wᵢ log_m uᵢ) from the mean direction, per tensor, until a step is
    shorter than 1e-5; weights are divided by their sum, experts of no length are left out. Merged
    is θ₀ + λ(result − θ₀).
    """
    return measured.of(base, experts)
