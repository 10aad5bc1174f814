"""AIM: changes of weights whose inputs are large in the base are held back, whatever the method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evomerge.methods.core.view import Tensor
from evomerge.recipe.recipe import Aim, Merge, Recipe

AIM_KIND = "mean_abs"
"""The kind of calibration data of the base that it needs."""


def aim_factors(mean_abs: Tensor, omega: float, quantile: float = 1.0) -> Tensor:
    """Return what multiplies the changes of each input's weights: 1 − ā(1 − ω).

    ā is the input's mean |x| over that of the `quantile` of inputs (1: the largest), 1 at most.
    Source: Nobari et al. 2025, arXiv:2502.02421.

    Args:
        mean_abs: float32 (inputs,), of the base.
        omega: the share that is left where the activation is largest; 1 changes nothing.
        quantile: of the inputs, whose activation counts as largest; below 1, a few inputs with
            massive activations do not decide alone.

    Returns:
        float32 (inputs,), between ω and 1.
    """
    import torch

    # the rank, not an interpolation between two: a value that is there
    rank = max(1, round(quantile * len(mean_abs)))
    largest = torch.sort(mean_abs.float()).values[rank - 1]
    if not largest > 0:
        return torch.ones_like(mean_abs, dtype=torch.float32)
    return 1 - (mean_abs.float() / largest).clamp(max=1.0) * (1 - omega)


def aimed(recipe: Recipe, omega: Callable[[Merge], float], quantile: float = 1.0) -> Recipe:
    """Make the recipe whose merges are held back, those with an ω of 1 excepted."""
    merges = [_aimed(merge, omega(merge), quantile) for merge in recipe.merges]
    return recipe.model_copy(update={"merges": tuple(merges)})


def _aimed(merge: Merge, omega: float, quantile: float) -> Merge:
    found: Any = None if omega >= 1 else Aim(omega=omega, quantile=quantile)
    return merge.model_copy(update={"aim": found})
