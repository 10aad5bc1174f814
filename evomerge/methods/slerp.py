"""Slerp: spherical interpolation of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from evomerge.methods import Range, Tensor, View, merge_method
from evomerge.methods.core.inner_products import Gram, weights_gram


def angle(products: np.ndarray) -> float:
    """Return the angle in radians between two vectors with these inner products; 0 if one is 0."""
    (aa, dot), (_, bb) = products.tolist()
    if not (aa > 0 and bb > 0):
        return 0.0
    return math.acos(max(-1.0, min(1.0, dot / math.sqrt(aa * bb))))


def arc(view: View, *, t: float, statistics: Gram | None = None) -> Sequence[float]:
    """Return the factors of slerp's two ends: base and expert, or the two experts."""
    products = (statistics or weights_gram(view)).products
    omega = angle(products[-2:, -2:])
    if abs(math.cos(omega)) > 0.9995:
        return [1 - t, t]
    return [math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)]


@merge_method(
    reference="Shoemake 1985; as merged by mergekit",
    experts=(1, 2),
    measure=arc,
    joint=weights_gram,
    differentiable_in=("t",),
)
def slerp(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    t: Annotated[float, Range(0.0, 1.0)] = 0.5,
    measured: Sequence[float],
) -> Tensor:
    """Interpolate on the sphere from the base to one expert, or between two experts.

    sin((1−t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b, with Ω the angle between the flattened tensors;
    linear when |cos Ω| > 0.9995.
    """
    first, second = (base, experts[0]) if len(experts) == 1 else (experts[0], experts[1])
    return first * measured[0] + second * measured[1]
