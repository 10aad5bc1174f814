"""Merges by singular vectors with parameters of their own: Iso-CTS, OPCM, Twin-Merging.

Matrices are as in `subspaces`. One SVD per expert and candidate: seconds for a layer of a large
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from evomerge.methods.registry import PerExpert, Range, Tensor, merge_method
from evomerge.methods.subspaces import mean, polar_factor, svd
from evomerge.methods.task_arithmetic import Lambda

Share = Annotated[float, Range(0.0, 1.0)]


@merge_method(
    reference="Marczak et al. 2025, arXiv:2502.04959, algorithm 2", elementwise=False, relative=True
)
def iso_cts(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    common: Share = 0.8,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Iso-C in a common subspace and task-specific ones outside it.

    The share `common` of the singular directions of Σ τ, then as many of each τ outside their span
    as share out the rest equally (so that the common share is rounded); U and V are replaced by
    polar factors and every singular value by their mean, over those that are not zero.
    """
    import torch

    taus = [expert - base for expert in experts]
    if base.dim() < 2:
        return base + mean(taus) * lambda_
    u, s, vh = svd(sum(taus[1:], taus[0]))
    each = _directions_per_task(min(base.shape[-2:]), len(taus), common)
    k = min(base.shape[-2:]) - each * len(taus)
    u, s, vh = u[..., :k], s[..., :k], vh[..., :k, :]
    outside = [svd(tau - u @ (u.mT @ tau), part_of=tau) for tau in taus]
    left = polar_factor(torch.cat([*(o[0][..., :each] for o in outside), u], -1))
    right = polar_factor(torch.cat([*(o[2][..., :each, :] for o in outside), vh], -2))
    values = torch.cat([*(o[1][..., :each] for o in outside), s], -1)
    level = values.sum(-1) / (values > 0).sum(-1).clamp(min=1)
    return base + left @ right * (level * lambda_)[..., None, None]


def _directions_per_task(rank: int, tasks: int, common: float) -> int:
    """How many directions each task has outside the common ones; all of them fit in the rank."""
    return min(round((rank - int(rank * common)) / tasks), rank // tasks)


@merge_method(
    reference="Tang et al. 2025, arXiv:2501.09522, eqs. 5 to 8", elementwise=False, relative=True
)
def opcm(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    alpha: Share = 0.5,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Experts one after another, each projected off the subspace of what was merged before.

    Of each τ, in the basis of the merged update's singular vectors, the diagonal is taken away and
    the block of the leading ones, which hold the share `alpha` of the sum of singular values. The
    sum is scaled to the mean norm of the task vectors, per tensor (the paper: over the model). The
    experts' order counts.
    """
    import torch

    taus = [expert - base for expert in experts]
    merged = taus[0]
    for tau in taus[1:]:
        merged = merged + (_projected(tau, merged, alpha) if base.dim() > 1 else tau)
    norms = [torch.linalg.vector_norm(tau.double()) for tau in taus]
    size = torch.linalg.vector_norm(merged.double())
    level = sum(norms[1:], norms[0]) / len(norms) / torch.where(size > 0, size, 1.0)
    return base + merged * (level * lambda_).to(base.dtype)


def _projected(tau: Tensor, merged: Tensor, alpha: float) -> Tensor:
    """τ without the diagonal and the leading block of UᵀτV, of `merged` = USVᵀ (eq. 6)."""
    import torch

    u, s, vh = svd(merged)
    seen = u.mT @ tau @ vh.mT
    above = s.cumsum(-1) > alpha * s.sum(-1, keepdim=True)
    split = above.to(torch.int32).argmax(-1, keepdim=True)  # 0 where none is
    leading = torch.arange(s.shape[-1], device=s.device) < split
    block = leading[..., :, None] & leading[..., None, :]
    diagonal = torch.eye(s.shape[-1], dtype=torch.bool, device=s.device)
    return tau - u @ (seen * (block | diagonal)) @ vh


@merge_method(
    reference="Lu et al. 2024, arXiv:2406.15479, eqs. 3 and 4, with fixed weights",
    elementwise=False,
    relative=True,
)
def twin(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Annotated[Sequence[float], PerExpert(0.3, low=-10.0, high=10.0)],
    shared: Annotated[float, Range(0.0, 2.0)] = 0.3,
    rank: Share = 0.1,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Shared knowledge plus compressed exclusive knowledge: θ₀ + λ(Δ + Σ wᵢ SVD_r(τᵢ − Δ)).

    Δ = `shared` · Σ τ is the shared expert's; of what each expert has beside it the share `rank` of
    singular directions is kept, at least one unless `rank` is 0 (of vectors everything). Weights,
    which the paper's router chooses input by input, are constants here, left to the search.
    """
    taus = [expert - base for expert in experts]
    delta = sum(taus[1:], taus[0]) * shared
    total = delta
    for w, tau in zip(weight, taus, strict=True):
        total = total + _truncated(tau - delta, rank) * w
    return base + total * lambda_


def _truncated(matrix: Tensor, share: float) -> Tensor:
    if share >= 1 or matrix.dim() < 2:
        return matrix
    r = max(1, int(share * min(matrix.shape[-2:]))) if share > 0 else 0
    u, s, vh = svd(matrix)
    return (u[..., :r] * s[..., None, :r]) @ vh[..., :r, :]
