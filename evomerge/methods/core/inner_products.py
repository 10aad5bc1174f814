"""Inner products of sources, the same bytes whatever the number of threads.

Products are float64. They are added within blocks of at most 2¹⁵ entries, which torch adds in one
thread, and blocks are added exactly (`math.fsum`) or in order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from evomerge.methods.core.view import Tensor, View

BLOCK = 1 << 15
_LINES = 1 << 18
"""Entries of whole rows, or columns, that are held in float64 at a time."""


@dataclass(frozen=True)
class Gram:
    """Inner products of vectors.

    Attributes:
        products: float64 (vectors, vectors), or (lines, vectors, vectors) with one matrix for each
            row or column of a tensor.
    """

    products: np.ndarray

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.products.nbytes


@dataclass(frozen=True)
class Grams:
    """Inner products of the sources' weights, the base's first, and of the task vectors."""

    weights: Gram
    task_vectors: Gram

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.weights.nbytes + self.task_vectors.nbytes


def weights_gram(view: View) -> Gram:
    """Multiply the flattened base and experts with each other."""
    return Gram(_whole(view, _weights))


def task_vectors_gram(view: View) -> Gram:
    """Multiply the flattened task vectors with each other."""
    return Gram(_whole(view, View.taus))


def grams(view: View) -> Grams:
    """Compute the inner products of the weights, and of the task vectors."""
    return Grams(weights_gram(view), task_vectors_gram(view))


def row_grams(view: View, task_vectors: bool) -> Gram:
    """Compute the inner products of every row: vectors along the last dimension."""
    from evomerge.common.accelerator import as_float64

    vectors = View.taus if task_vectors else _weights
    rows = view.base.numel() // max(view.columns, 1)
    step = max(1, _LINES // max(view.columns, 1))
    parts = []
    for first in range(0, rows, step):
        last = min(first + step, rows)
        part = slice(first * view.columns, last * view.columns)
        lines = [as_float64(v).view(last - first, -1) for v in vectors(view, part)]
        parts.append(_line_products(lines))
    return Gram(np.concatenate(parts))


def column_grams(view: View, task_vectors: bool) -> Gram:
    """Compute the inner products of every column: vectors along the first dimension.

    A tensor of more dimensions is a matrix of shape[0] rows.
    """
    import torch

    from evomerge.common.accelerator import as_float64

    vectors = View.taus if task_vectors else _weights
    n = view.base.numel()
    rows = view.shape[0] if len(view.shape) > 1 else n
    columns = n // max(rows, 1)
    step = max(1, _LINES // max(rows, 1))
    grid = torch.arange(n, device=view.base.device).view(rows, columns)
    parts = []
    for first in range(0, columns, step):
        where = grid[:, first : first + step].t().contiguous()
        lines = [as_float64(v).view(where.shape) for v in vectors(view, where.view(-1))]
        parts.append(_line_products(lines))
    return Gram(np.concatenate(parts))


def exact_sum(parts: Iterator[Tensor]) -> float:
    """Add up tensors' entries exactly; each tensor has at most `BLOCK`."""
    import torch

    from evomerge.common.accelerator import as_float64

    sums = [as_float64(part).sum() for part in parts]
    return math.fsum(torch.stack(sums).tolist()) if sums else 0.0  # a device is waited for once


def blocks(view: View) -> Iterator[slice]:
    """Yield slices of `BLOCK` entries that cover a view."""
    for start in range(0, view.base.numel(), BLOCK):
        yield slice(start, min(start + BLOCK, view.base.numel()))


def _weights(view: View, part: slice | Tensor) -> list[Tensor]:
    return [tensor[part].to(view.dtype) for tensor in (view.base, *view.experts)]


def _whole(view: View, vectors: object) -> np.ndarray:
    import torch

    from evomerge.common.accelerator import as_float64

    assert callable(vectors)
    count = len(vectors(view, slice(0, 0)))
    pairs = list(combinations_with_replacement(range(count), 2))
    sums = []
    for part in blocks(view):
        wide = [as_float64(vector) for vector in vectors(view, part)]
        sums.append(torch.stack([(wide[i] * wide[j]).sum() for i, j in pairs]))
    products = np.zeros((count, count))
    by_pair = zip(*torch.stack(sums).tolist(), strict=True) if sums else ()
    for (i, j), found in zip(pairs, by_pair, strict=bool(sums)):  # a device was waited for once
        products[i, j] = products[j, i] = math.fsum(found)
    return products


def _line_products(lines: Sequence[Tensor]) -> np.ndarray:
    """Compute Gram matrices of lines: tensors (lines, entries) → (lines, vectors, vectors)."""
    import torch

    count, (rows, entries) = len(lines), lines[0].shape
    products = np.zeros((rows, count, count))
    for i, j in combinations_with_replacement(range(count), 2):
        total = torch.zeros(rows, dtype=torch.float64, device=lines[0].device)
        for start in range(0, entries, BLOCK):
            part = slice(start, start + BLOCK)
            total = total + (lines[i][:, part] * lines[j][:, part]).sum(1)
        products[:, i, j] = products[:, j, i] = total.cpu().numpy()
    return products
