"""Linear: a weighted average of weights, as of model soups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from evomerge.methods import Range, Tensor, View, Weight, merge_method


def shares(
    _: View | None, *, weight: Sequence[float], base_weight: float, normalize: bool
) -> Sequence[float]:
    """Return the factors of base and experts; NaN when they sum to zero and are normalised."""
    total = base_weight + math.fsum(weight) if normalize else 1.0
    return [value / total if total else math.nan for value in (base_weight, *weight)]


@merge_method(
    reference="Wortsman et al. 2022, arXiv:2203.05482 (uniform soup; here weighted)",
    measure=shares,
    differentiable_in=("weight", "base_weight"),
    of_parameters=True,
)
def linear(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    base_weight: Annotated[float, Range(-10.0, 10.0)] = 0.0,
    normalize: bool = True,
    measured: Sequence[float],
) -> Tensor:
    """Add up the experts and, with `base_weight`, the base, with weights.

    Σ wᵢθᵢ, divided by Σ wᵢ when `normalize` (a sum of zero gives non-finite weights, which the
    materializer reports as a failed candidate).
    """
    total = base * measured[0]
    for share, expert in zip(measured[1:], experts, strict=True):
        total = total + expert * share
    return total
