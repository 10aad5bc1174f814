"""Iso-C: the sum of task vectors, with all its singular values made equal."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.methods import Lambda, Tensor, merge_method
from evomerge.methods.core.decompositions import ON_ONE_THREAD, svd
from evomerge.methods.core.merged_update import Scaled, of_sources


def flattened(matrix: Tensor) -> Tensor:
    """Set every singular value to their mean, over those that are not zero (Iso-C's step)."""
    u, s, vh = svd(matrix)
    count = (s > 0).sum(-1).clamp(min=1)
    return u @ vh * (s.sum(-1) / count)[..., None, None]


def _iso_c(taus: Sequence[Tensor]) -> Tensor:
    return flattened(sum(taus[1:], taus[0]))


_ISO_C = of_sources(_iso_c)


@merge_method(
    reference="Marczak et al. 2025, arXiv:2502.04959, algorithm 1",
    joint=_ISO_C[0],
    measure=_ISO_C[1],
    relative=True,
    differentiable_in=("lambda",),
    changes=[ON_ONE_THREAD],
    copies=2,
)
def iso_c(
    base: Tensor, experts: Sequence[Tensor], *, lambda_: Lambda = 1.0, measured: Scaled
) -> Tensor:
    """Add Σ τ with all its singular values made equal: θ₀ + λ σ̄ U Vᵀ, σ̄ their mean.

    Where Σ τ has not full rank (adapters), σ̄ is the mean over its rank: Σ σ is kept, as it is at
    full rank, and directions that no expert changed stay unchanged.
    """
    return measured.added_to(base)
