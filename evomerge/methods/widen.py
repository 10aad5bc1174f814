"""WIDEN: weights by how far an expert's columns moved in magnitude and in direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from evomerge.methods import Entries, Lambda, Range, Tensor, View, merge_method
from evomerge.methods.core.inner_products import column_grams, exact_sum


@dataclass(frozen=True)
class Moves:
    """How far the columns of the experts' matrices moved, as ranks in [0, 1) of each expert.

    Attributes:
        magnitude: float64 (experts, columns), rank of |‖θᵢ‖ − ‖θ₀‖| over the number of columns.
        direction: the same of 1 − cos(θᵢ, θ₀).
    """

    magnitude: np.ndarray
    direction: np.ndarray

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.magnitude.nbytes + self.direction.nbytes


def moves(view: View) -> Moves:
    """Rank the columns (vectors along the first dimension); nothing for one-dimensional tensors."""
    if len(view.shape) < 2:
        return Moves(np.zeros((0, 0)), np.zeros((0, 0)))
    # 1. norms of the columns, and their cosines with the base's
    products = column_grams(view, task_vectors=False).products
    norms = np.sqrt(np.diagonal(products, axis1=1, axis2=2)).T
    dots, scale = products[:, 0, 1:].T, norms[:1] * norms[1:]
    cosines = np.where(scale > 0, dots / np.where(scale > 0, scale, 1.0), norms[:1] == norms[1:])
    # 2. how far each moved, ranked within the expert
    return Moves(_ranks(np.abs(norms[1:] - norms[:1])), _ranks(1 - np.clip(cosines, -1, 1)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank along the last axis, over its length; of tied ones the lower index is smaller."""
    order = values.argsort(axis=1, kind="stable")
    ranks = np.empty_like(values)
    np.put_along_axis(ranks, order, np.arange(values.shape[1], dtype=float)[None], axis=1)
    return ranks / values.shape[1]


def weights(
    view: View, *, ratio: float, calibration: float, statistics: Moves | None = None
) -> list[Entries]:
    """Compute one weight per column, or per entry of a vector, for each expert."""
    import torch

    from evomerge.common.accelerator import as_float64

    if len(view.shape) < 2:
        size = torch.stack([as_float64(tau.abs()) for tau in view.taus(slice(None))])
        means = [exact_sum(iter(row.split(1 << 15))) / max(len(row), 1) for row in size]
        found = _scores(size.cpu().numpy(), np.array(means)[:, None], ratio, calibration)
        return [Entries(_tensor(row, view)) for row in found]
    # of matrices: the mean of two scores, of magnitude and of direction
    known = statistics or moves(view)
    columns = known.magnitude.shape[1]
    middle = np.full((1, 1), (columns - 1) / 2 / columns)  # the mean of ranks, without rounding
    scores = [
        _scores(ranks, middle, ratio, calibration) for ranks in (known.magnitude, known.direction)
    ]
    return [
        Entries(_tensor(row, view), columns, per_row=False) for row in (scores[0] + scores[1]) / 2
    ]


def _scores(values: np.ndarray, means: np.ndarray, ratio: float, calibration: float) -> np.ndarray:
    """Take the softmax over experts; `calibration` where a value exceeds the mean × ratio."""
    shifted = np.exp(values - values.max(0, keepdims=True))
    shares = shifted / sum(shifted[1:], shifted[0])
    return np.where(values > means * ratio, calibration, shares)


def _tensor(values: np.ndarray, view: View) -> Tensor:
    import torch

    return torch.from_numpy(values.copy()).to(view.base.device, view.dtype)


@merge_method(
    reference="Yu et al. 2024, arXiv:2408.03092, algorithm 1",
    measure=weights,
    joint=moves,
    differentiable_in=("lambda",),
    copies=4,
)
def widen(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    ratio: Annotated[float, Range(0.0, 10.0)] = 1.0,
    calibration: Annotated[float, Range(0.0, 2.0)] = 1.0,
    lambda_: Lambda = 1.0,
    measured: Sequence[Any],
) -> Tensor:
    """Weigh every column of every expert by how far it moved: θ₀ + λ Σ sᵢ ⊙ τᵢ.

    A column's move is the change of its norm, and that of its direction (1 − cos), both ranked
    within the expert. Scores are the softmax of ranks over experts, `calibration` where a rank is
    above the expert's mean times `ratio`; s is the mean of both scores. Of vectors, entries are
    scored by |τ|. (The paper's embedding has a column per token; here, as every matrix, one per
    hidden unit.)
    """
    parts = [(expert - base) * weight for weight, expert in zip(measured, experts, strict=True)]
    return base + sum(parts[1:], parts[0]) * lambda_
