"""OPCM: experts one after another, each projected off the subspace of those before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from evomerge.methods import Lambda, Range, Tensor, merge_method
from evomerge.methods.core.decompositions import ON_ONE_THREAD, svd


@merge_method(
    reference="Tang et al. 2025, arXiv:2501.09522, eqs. 5 to 8",
    elementwise=False,
    relative=True,
    changes=[ON_ONE_THREAD],
    copies=3,
)
def opcm(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    alpha: Annotated[float, Range(0.0, 1.0)] = 0.5,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Add experts one after another, each projected off the subspace of those before.

    Of each τ, in the basis of the merged update's singular vectors, the diagonal is taken away and
    the block of the leading ones, which hold the share `alpha` of the sum of singular values. The
    sum is scaled to the mean norm of the task vectors, per tensor (the paper: over the model). The
    experts' order counts.
    """
    import torch

    from evomerge.common.accelerator import as_float64

    # 1. one expert after another, projected off what was merged before (eqs. 5 to 7)
    taus = [expert - base for expert in experts]
    merged = taus[0]
    for tau in taus[1:]:
        merged = merged + (_projected(tau, merged, alpha) if base.dim() > 1 else tau)
    # 2. the sum, at the mean norm of the task vectors (eq. 8)
    norms = [torch.linalg.vector_norm(as_float64(tau)) for tau in taus]
    size = torch.linalg.vector_norm(as_float64(merged))
    level = sum(norms[1:], norms[0]) / len(norms) / torch.where(size > 0, size, 1.0)
    return base + merged * (level * lambda_).to(base)


def _projected(tau: Tensor, merged: Tensor, alpha: float) -> Tensor:
    """Take the diagonal and the leading block of UᵀτV off τ, of `merged` = USVᵀ (eq. 6)."""
    import torch

    # 1. τ in the basis of the merged update's singular vectors
    u, s, vh = svd(merged)
    seen = u.mT @ tau @ vh.mT
    # 2. the leading directions, which hold the share α of the sum of singular values
    above = s.cumsum(-1) > alpha * s.sum(-1, keepdim=True)
    split = above.to(torch.int32).argmax(-1, keepdim=True)  # 0 where none is
    leading = torch.arange(s.shape[-1], device=s.device) < split
    # 3. their block and the diagonal are taken away
    block = leading[..., :, None] & leading[..., None, :]
    diagonal = torch.eye(s.shape[-1], dtype=torch.bool, device=s.device)
    return tau - u @ (seen * (block | diagonal)) @ vh
