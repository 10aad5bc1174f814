"""Merges within the span of the sources, whose inner products decide the coordinates.

Whatever a merge on the sphere computes is a sum of the sources with some factors. These depend on
inner products of the sources alone, which no candidate changes: so a candidate is one weighted sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from evomerge.methods.core.inner_products import Grams, grams
from evomerge.methods.core.view import Tensor, View


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
        """Return the combination of these tensors."""
        shift = base * self.origin
        total = base * self.base
        for share, expert in zip(self.shares, experts, strict=True):
            total = total + (expert - shift) * share
        return total


def combination(shares: Sequence[Any], lambda_: float, task_vectors: bool) -> Combination:
    """Make the combination that is θ₀ + λ(result − θ₀), from factors that hold λ already."""
    return Combination(1.0 if task_vectors else 1 - lambda_, float(task_vectors), shares)


def products_of(view: View, known: Grams | None, task_vectors: bool) -> np.ndarray:
    """Return the experts' Gram matrix, of their task vectors or of their weights."""
    found = known or grams(view)
    return found.task_vectors.products if task_vectors else found.weights.products[1:, 1:]


def norm(coordinates: np.ndarray, gram: np.ndarray) -> float:
    """Return the length of a sum of vectors with these inner products."""
    return math.sqrt(max(float(coordinates @ gram @ coordinates), 0.0))
