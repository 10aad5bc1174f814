"""Averages of weights: linear (model soups), spherical, and passthrough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from evomerge.methods.registry import PerExpert, Range, Tensor, View, merge_method


def shares(
    _: View, *, weight: Sequence[float], base_weight: float, normalize: bool
) -> Sequence[float]:
    """The factors of the base and of each expert; NaN when they sum to zero and are normalised."""
    total = base_weight + math.fsum(weight) if normalize else 1.0
    return [value / total if total else math.nan for value in (base_weight, *weight)]


@merge_method(
    reference="Wortsman et al. 2022, arXiv:2203.05482 (uniform soup; here weighted)",
    measure=shares,
)
def linear(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Annotated[Sequence[float], PerExpert(1.0, low=-10.0, high=10.0)],
    base_weight: Annotated[float, Range(-10.0, 10.0)] = 0.0,
    normalize: bool = True,
    measured: Sequence[float],
) -> Tensor:
    """Weighted sum of the experts and, with `base_weight`, of the base.

    Σ wᵢθᵢ, divided by Σ wᵢ when `normalize` (a sum of zero gives non-finite weights, which the
    materializer reports as a failed candidate).
    """
    total = base * measured[0]
    for share, expert in zip(measured[1:], experts, strict=True):
        total = total + expert * share
    return total


def angle(view: View) -> float:
    """The angle in radians between the two flattened tensors that slerp joins; 0 if one is zero.

    Sums run in float64 over fixed blocks of 2¹⁵ entries, added exactly, so that the result does not
    depend on the number of threads.
    """
    first, second = _endpoints(view.base, view.experts)
    dots: list[list[float]] = [[], [], []]
    for start in range(0, first.numel(), 1 << 15):
        a = first[start : start + (1 << 15)].double()
        b = second[start : start + (1 << 15)].double()
        for sums, product in zip(dots, (a * b, a * a, b * b), strict=True):
            sums.append(product.sum().item())
    dot, aa, bb = (math.fsum(sums) for sums in dots)
    if not (aa > 0 and bb > 0):
        return 0.0 if math.isfinite(aa + bb) else math.nan
    return math.acos(max(-1.0, min(1.0, dot / math.sqrt(aa * bb))))


def arc(view: View, *, t: float) -> Sequence[float]:
    """The factors of slerp's two ends."""
    omega = angle(view)
    if abs(math.cos(omega)) > 0.9995:
        return [1 - t, t]
    return [math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)]


@merge_method(reference="Shoemake 1985; as merged by mergekit", experts=(1, 2), measure=arc)
def slerp(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    t: Annotated[float, Range(0.0, 1.0)] = 0.5,
    measured: Sequence[float],
) -> Tensor:
    """Spherical interpolation from the base to one expert, or between two experts.

    sin((1−t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b, with Ω the angle between the flattened tensors;
    linear when |cos Ω| > 0.9995.
    """
    first, second = _endpoints(base, experts)
    return first * measured[0] + second * measured[1]


@merge_method(reference="the source itself", experts=(0, 1))
def passthrough(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    scale: Annotated[float, Range(-10.0, 10.0)] = 1.0,
) -> Tensor:
    """The expert's own weights (the base's when no expert is named), times `scale`."""
    return (experts[0] if experts else base) * scale


def _endpoints(base: Tensor, experts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return (base, experts[0]) if len(experts) == 1 else (experts[0], experts[1])
