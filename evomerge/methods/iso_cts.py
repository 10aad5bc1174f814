"""Iso-CTS: isotropic merging in a common subspace, and task-specific directions outside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from evomerge.methods import Lambda, Range, Tensor, merge_method
from evomerge.methods.core.decompositions import ON_ONE_THREAD, polar_factor, svd
from evomerge.methods.core.merged_update import mean


@merge_method(
    reference="Marczak et al. 2025, arXiv:2502.04959, algorithm 2",
    elementwise=False,
    relative=True,
    changes=[ON_ONE_THREAD],
    copies=4,
)
def iso_cts(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    common: Annotated[float, Range(0.0, 1.0)] = 0.8,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Do Iso-C in a common subspace, and in task-specific directions outside it.

    The share `common` of the singular directions of Σ τ, then as many of each τ outside their span
    as share out the rest equally (so that the common share is rounded); U and V are replaced by
    polar factors and every singular value by their mean, over those that are not zero.
    """
    import torch

    taus = [expert - base for expert in experts]
    if base.dim() < 2:
        return base + mean(taus) * lambda_
    # 1. the common subspace: the leading directions of Σ τ
    u, s, vh = svd(sum(taus[1:], taus[0]))
    each = _directions_per_task(min(base.shape[-2:]), len(taus), common)
    k = min(base.shape[-2:]) - each * len(taus)
    u, s, vh = u[..., :k], s[..., :k], vh[..., :k, :]
    # 2. each task's own leading directions outside it
    outside = [svd(tau - u @ (u.mT @ tau), part_of=tau) for tau in taus]
    # 3. all of them made orthonormal, with one singular value: their mean
    left = polar_factor(torch.cat([*(o[0][..., :each] for o in outside), u], -1))
    right = polar_factor(torch.cat([*(o[2][..., :each, :] for o in outside), vh], -2))
    values = torch.cat([*(o[1][..., :each] for o in outside), s], -1)
    level = values.sum(-1) / (values > 0).sum(-1).clamp(min=1)
    return base + left @ right * (level * lambda_)[..., None, None]


def _directions_per_task(rank: int, tasks: int, common: float) -> int:
    """Count the directions each task has outside the common ones; all fit in the rank."""
    return min(round((rank - int(rank * common)) / tasks), rank // tasks)
