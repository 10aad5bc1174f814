"""Nuslerp: slerp of two experts, or of their task vectors, whole or line by line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from evomerge.methods import Entries, Lambda, Tensor, View, Weight, merge_method
from evomerge.methods.core.inner_products import Grams, column_grams, grams, row_grams
from evomerge.methods.core.span import Combination, combination, products_of


def _slerp_factors(gram: np.ndarray, t: float) -> np.ndarray:
    """Compute the two factors of slerp from (…, 2, 2) inner products: (…, 2)."""
    norms = np.maximum(np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1)), 1e-7)
    cosine = np.clip(gram[..., 0, 1] / (norms[..., 0] * norms[..., 1]), -1, 1)
    colinear = 1 - cosine**2 <= 1e-16
    theta = np.arccos(np.where(colinear, 0, cosine))
    arcs = np.stack([np.sin((1 - t) * theta), np.sin(t * theta)], -1) / np.sin(theta)[..., None]
    return np.where(colinear[..., None], np.array([1 - t, t]), arcs)


def joined(
    view: View,
    *,
    weight: Sequence[float],
    along: str,
    task_vectors: bool,
    lambda_: float,
    statistics: Grams | None = None,
) -> Combination:
    """Compute the two experts' factors: numbers, or one for every row or column."""
    total = math.fsum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    if along == "tensor":
        found = _slerp_factors(products_of(view, statistics, task_vectors), t)
        return combination([float(lambda_ * f) for f in found], lambda_, task_vectors)
    of_lines = row_grams if along == "rows" else column_grams
    gram = of_lines(view, task_vectors).products
    factors = lambda_ * _slerp_factors(gram if task_vectors else gram[:, 1:, 1:], t)
    shares = [_spread(view, factors[:, i], along) for i in range(2)]
    return combination(shares, lambda_, task_vectors)


def _spread(view: View, values: np.ndarray, along: str) -> Entries:
    """Give every entry the number of its line."""
    import torch

    found = torch.from_numpy(values.copy()).to(view.base.device, view.dtype)
    if along == "rows":
        return Entries(found, view.columns)
    return Entries(found, len(values), per_row=False)


@merge_method(
    reference="mergekit 0.1.5 (nuslerp)",
    experts=(2, 2),
    measure=joined,
    joint=grams,
    differentiable_in=("weight", "lambda"),
)
def nuslerp(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    along: Literal["tensor", "rows", "columns"] = "tensor",
    task_vectors: bool = False,
    lambda_: Lambda = 1.0,
    measured: Combination,
) -> Tensor:
    """Slerp two experts, or their task vectors, with t = w₂/(w₁ + w₂) (½ at a sum of zero).

    The angle is that between whole tensors, or one for each row (last dimension) or column (first
    dimension); lines that are parallel are interpolated linearly. Merged is θ₀ + λ(result − θ₀).
    """
    return measured.of(base, experts)
