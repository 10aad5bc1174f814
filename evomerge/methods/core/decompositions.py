"""Decompositions of matrices, and of stacks of them over the last two dimensions.

Directions whose singular value is zero (to rounding) are left out: they are arbitrary, and
orthogonalising would blow them up.
"""

from __future__ import annotations

from evomerge.methods.core.view import Tensor


def svd(matrix: Tensor, part_of: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """U (…, m, r), S (…, r), Vᵀ (…, r, n) with r = min(m, n); triplets of no weight are zeros.

    Of no weight are singular values within rounding of zero, as numpy's `matrix_rank` has it; where
    the matrix is what a projection left of `part_of`, within the rounding of that.
    """
    import torch

    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    size = s[..., 0] if part_of is None else torch.linalg.vector_norm(part_of, dim=(-2, -1))
    cutoff = size * max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps
    there = (s > cutoff[..., None]).to(matrix.dtype)
    return u * there[..., None, :], s * there, vh * there[..., None]


def polar_factor(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows) on the matrix's range."""
    u, _, vh = svd(matrix)
    return u @ vh
