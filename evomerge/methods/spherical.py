"""Merges on the sphere: slerp of two, and its generalisations to more.

Everything these methods compute lies in the span of the sources, so that inner products of the
sources, which no candidate changes, decide its coordinates: a candidate is one weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from evomerge.methods.entries import Entries
from evomerge.methods.inner_products import (
    Gram,
    Grams,
    column_grams,
    grams,
    row_grams,
    weights_gram,
)
from evomerge.methods.registry import PerExpert, Range, Tensor, View, merge_method

Weight = Annotated[Sequence[float], PerExpert(1.0, low=-10.0, high=10.0)]
Lambda = Annotated[float, Range(-10.0, 10.0)]
_STEPS = 10
_TOLERANCE = 1e-5


def angle(products: np.ndarray) -> float:
    """The angle in radians between two vectors with these inner products; 0 if one is zero."""
    (aa, dot), (_, bb) = products.tolist()
    if not (aa > 0 and bb > 0):
        return 0.0 if math.isfinite(aa + bb) else math.nan
    return math.acos(max(-1.0, min(1.0, dot / math.sqrt(aa * bb))))


def arc(view: View, *, t: float, statistics: Gram | None = None) -> Sequence[float]:
    """The factors of slerp's two ends: base and expert, or the two experts."""
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
)
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
    first, second = (base, experts[0]) if len(experts) == 1 else (experts[0], experts[1])
    return first * measured[0] + second * measured[1]


class Combination(NamedTuple):
    """θ₀·`base` + Σ (θᵢ − θ₀·`origin`)·`shares`ᵢ.

    Attributes:
        base: 1 − λ for a merge of weights, 1 for one of task vectors.
        origin: 0 for weights, 1 for task vectors.
        shares: one factor per expert, or `Entries` of them.
    """

    base: float
    origin: float
    shares: Sequence[Any]

    def of(self, base: Tensor, experts: Sequence[Tensor]) -> Tensor:
        """The combination of these tensors."""
        shift = base * self.origin
        total = base * self.base
        for share, expert in zip(self.shares, experts, strict=True):
            total = total + (expert - shift) * share
        return total


def _combination(shares: Sequence[Any], lambda_: float, task_vectors: bool) -> Combination:
    return Combination(1.0 if task_vectors else 1 - lambda_, float(task_vectors), shares)


def _products(view: View, known: Grams | None, task_vectors: bool) -> np.ndarray:
    """The experts' Gram matrix, of their task vectors or of their weights."""
    found = known or grams(view)
    return found.task_vectors.products if task_vectors else found.weights.products[1:, 1:]


def barycentre(
    view: View,
    *,
    weight: Sequence[float],
    normalize: bool,
    task_vectors: bool,
    lambda_: float,
    statistics: Grams | None = None,
) -> Combination:
    """The experts' factors in multislerp."""
    w = np.array(weight)
    if normalize:
        with np.errstate(divide="ignore", invalid="ignore"):
            w = w / w.sum()
    shares = _multislerp_shares(_products(view, statistics, task_vectors), w)
    return _combination([float(lambda_ * share) for share in shares], lambda_, task_vectors)


def _multislerp_shares(gram: np.ndarray, w: np.ndarray, epsilon: float = 1e-8) -> np.ndarray:
    norms = np.sqrt(gram.diagonal())
    if len(w) == 1:
        return w
    mean = w / (norms + epsilon)
    length = _norm(mean, gram)
    if length < epsilon:
        return w if len(w) == 2 else np.full(len(w), math.nan)
    mean = mean / length
    dots = gram @ mean / (norms + epsilon)
    tangent = w / (norms + epsilon) - (w @ dots) * mean
    size = _norm(tangent, gram) + epsilon
    point = mean * math.cos(size) + tangent * (math.sin(size) / size)
    return point * float(norms @ w)


def _norm(coordinates: np.ndarray, gram: np.ndarray) -> float:
    return math.sqrt(max(float(coordinates @ gram @ coordinates), 0.0))


@merge_method(reference="Goddard 2024, goddard.blog (multislerp)", measure=barycentre, joint=grams)
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
    """Barycentre on the sphere: tangent step from the weighted mean direction, mean norm.

    With uᵢ = θᵢ/‖θᵢ‖ (or τᵢ/‖τᵢ‖ with `task_vectors`) and m the direction of Σ wᵢuᵢ, the result is
    exp_m(Σ wᵢ(uᵢ − ⟨uᵢ, m⟩m)) · Σ wᵢ‖θᵢ‖, per tensor; `normalize` divides the weights by their sum.
    Merged is θ₀ + λ(result − θ₀). Directions that cancel give NaN (a failed candidate), but two
    such experts their linear interpolation.
    """
    return measured.of(base, experts)


def _slerp_factors(gram: np.ndarray, t: float) -> np.ndarray:
    """nuslerp's factors from (…, 2, 2) inner products: (…, 2)."""
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
    """The two experts' factors in nuslerp: numbers, or one for every row or column."""
    total = math.fsum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    if along == "tensor":
        found = _slerp_factors(_products(view, statistics, task_vectors), t)
        return _combination([float(lambda_ * f) for f in found], lambda_, task_vectors)
    of_lines = row_grams if along == "rows" else column_grams
    gram = of_lines(view, task_vectors).products
    factors = lambda_ * _slerp_factors(gram if task_vectors else gram[:, 1:, 1:], t)
    shares = [_spread(view, factors[:, i], along) for i in range(2)]
    return _combination(shares, lambda_, task_vectors)


def _spread(view: View, values: np.ndarray, along: str) -> Entries:
    """One number per line for every entry of it."""
    import torch

    found = torch.from_numpy(values.copy()).to(view.base.device, view.dtype)
    if along == "rows":
        return Entries(found, view.columns)
    return Entries(found, len(values), per_row=False)


@merge_method(reference="mergekit 0.1.5 (nuslerp)", experts=(2, 2), measure=joined, joint=grams)
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
    """Slerp of two experts, or of their task vectors, with t = w₂/(w₁ + w₂) (½ at a sum of zero).

    The angle is that between whole tensors, or one for each row (last dimension) or column (first
    dimension); lines that are parallel are interpolated linearly. Merged is θ₀ + λ(result − θ₀).
    """
    return measured.of(base, experts)


def centre(
    view: View,
    *,
    weight: Sequence[float],
    task_vectors: bool,
    lambda_: float,
    statistics: Grams | None = None,
) -> Combination:
    """The experts' factors in a Karcher mean."""
    gram, w = _products(view, statistics, task_vectors), np.array(weight)
    with np.errstate(divide="ignore", invalid="ignore"):
        w = w / w.sum()
    return _combination([float(lambda_ * s) for s in _karcher(gram, w)], lambda_, task_vectors)


def _karcher(gram: np.ndarray, w: np.ndarray) -> np.ndarray:
    norms = np.sqrt(gram.diagonal())
    if len(w) == 1:
        return w
    there = norms > _TOLERANCE
    if not there.any():
        return np.zeros(len(w))
    scale = np.where(there, norms, 1.0)
    cosines, alphas = gram / np.outer(scale, scale), np.where(there, w, 0.0)
    alphas = alphas / alphas.sum()
    mean = alphas.copy()
    length = _norm(mean, cosines)
    mean = mean / length if length >= _TOLERANCE else np.eye(len(w))[there.argmax()]
    for _ in range(_STEPS):
        dots = np.clip(cosines @ mean, -1, 1)
        theta = np.arccos(dots)
        pull = np.zeros(len(w))
        far = theta >= _TOLERANCE
        pull[far] = alphas[far] * theta[far] / np.sin(theta[far])
        tangent = pull - (pull @ dots) * mean
        size = _norm(tangent, cosines)
        if size < _TOLERANCE:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * tangent
        mean = mean / _norm(mean, cosines)
    return float(w @ norms) * mean / scale


@merge_method(reference="Karcher 1977; merges: arXiv:2603.04972", measure=centre, joint=grams)
def karcher(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    task_vectors: bool = False,
    lambda_: Lambda = 1.0,
    measured: Combination,
) -> Tensor:
    """Riemannian centre of mass of the experts' directions, times their weighted mean norm.

    At most 10 steps m ← exp_m(Σ wᵢ log_m uᵢ) from the mean direction, per tensor, until a step is
    shorter than 1e-5; weights are divided by their sum, experts of no length are left out. Merged
    is θ₀ + λ(result − θ₀).
    """
    return measured.of(base, experts)
