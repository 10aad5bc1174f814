"""Decompositions of matrices, and of stacks of them over the last two dimensions.

They run on one thread: the same bytes however many there are. On another machine, whose LAPACK
rounds otherwise, singular vectors differ in two ways beyond rounding, and methods are made so that
neither matters: their signs, which cancel where U and V are multiplied again; and within a group of
equal singular values any rotation of them is as good, which cancels, too, unless a method takes
some of the group and leaves others (TSVM's and Twin's rank, OPCM's subspace, Iso-CTS's share).

Directions whose singular value is zero (to rounding) are left out: they are arbitrary, and
orthogonalising would blow them up.
"""

from __future__ import annotations

from evomerge.common.one_thread import one_thread
from evomerge.methods.core.view import Tensor

_RIDGE = 1e-9
"""Added to the diagonal of a Gram matrix, in units of its mean."""
ON_ONE_THREAD = "its decompositions no longer depend on the number of threads, as they did then"
"""Why these methods have other bytes than in releases that ran LAPACK on all threads."""


def svd(matrix: Tensor, part_of: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose into U (…, m, r), S (…, r), Vᵀ (…, r, n), r = min(m, n); the largest value first.

    Triplets of no weight are zeros. Of no weight are singular values within rounding of zero, as
    numpy's `matrix_rank` has it; where the matrix is what a projection left of `part_of`, within
    the rounding of that.

    Raises:
        torch.linalg.LinAlgError: an entry is not finite; the kernel refuses the candidate then.
    """
    import torch

    with one_thread():
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        size = s[..., 0] if part_of is None else torch.linalg.vector_norm(part_of, dim=(-2, -1))
    cutoff = size * max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps
    there = (s > cutoff[..., None]).to(matrix.dtype)
    return u * there[..., None, :], s * there, vh * there[..., None]


def polar_factor(matrix: Tensor) -> Tensor:
    """Find the nearest matrix with orthonormal columns (or rows) on the matrix's range."""
    u, _, vh = svd(matrix)
    with one_thread():
        return u @ vh


def times_inverse(left: Tensor, gram: Tensor) -> Tensor:
    """Compute P·S⁻¹ for a symmetric S ≥ 0: by Cholesky, else the solution of least norm.

    Args:
        left: P, float64 (rows, n).
        gram: S, (n, n), of numbers that were rounded to float32.
    """
    import torch

    size = float(gram.diagonal().mean())
    if size <= 0:
        return torch.zeros_like(left)
    with one_thread():
        ridge = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) * (_RIDGE * size)
        factor, failed = torch.linalg.cholesky_ex(gram + ridge)
        if int(failed) == 0:
            return torch.cholesky_solve(left.mT, factor).mT
        cutoff = len(gram) * torch.finfo(torch.float32).eps
        return left @ torch.linalg.pinv(gram, rtol=cutoff, hermitian=True)
