"""Model stock: how far from the base towards the experts' mean, by the angles between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.methods import Entries, Lambda, Tensor, View, merge_method
from evomerge.methods.core.inner_products import Gram, row_grams, task_vectors_gram


def ratio(
    view: View, *, filter_wise: bool, lambda_: float, statistics: Gram | None = None
) -> float | Entries:
    """Compute λt/N, of the whole tensor or of each of its rows."""
    import torch

    n = len(view.experts)
    if not filter_wise:
        gram = statistics or task_vectors_gram(view)
        return float(lambda_ * _interpolation(gram.products) / n)
    found = lambda_ * _interpolation(row_grams(view, task_vectors=True).products) / n
    values = torch.from_numpy(found).to(view.base.device, view.dtype)
    return Entries(values, view.columns)


def _interpolation(gram: np.ndarray) -> Any:
    """Compute t (eq. 8) of (…, N, N) inner products: (…,); 0 where opposing updates cancel it."""
    n = gram.shape[-1]
    norms = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    scale = norms[..., :, None] * norms[..., None, :]
    cosines = np.clip(gram / np.where(scale > 0, scale, 1.0), -1, 1)
    above = np.triu_indices(n, 1)
    cosine = cosines[..., above[0], above[1]].mean(-1)
    divisor = 1 + (n - 1) * cosine
    singular = np.abs(divisor) < 1e-6
    return np.where(singular, 0.0, n * cosine / np.where(singular, 1.0, divisor))


@merge_method(
    reference="Jang et al. 2024, arXiv:2403.19522, eq. 8",
    experts=(2, None),
    measure=ratio,
    joint=task_vectors_gram,
    relative=True,
    differentiable_in=("lambda",),
)
def model_stock(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    filter_wise: bool = False,
    lambda_: Lambda = 1.0,
    measured: Any,
) -> Tensor:
    """Go from the base towards the experts' mean: θ₀ + λ t mean(τ), t = N cos θ/(1 + (N−1) cos θ).

    cos θ is the mean cosine of the task vectors' pairs: of whole tensors, or row by row (last
    dimension) with `filter_wise`. A task vector of zeros is at a right angle to all.
    """
    total = experts[0] - base
    for expert in experts[1:]:
        total = total + (expert - base)
    return base + total * measured
