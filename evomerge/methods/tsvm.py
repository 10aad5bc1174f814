"""TSVM: the experts' singular vectors side by side, decorrelated."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.methods import Lambda, Tensor, merge_method
from evomerge.methods.core.decompositions import ON_ONE_THREAD, polar_factor, svd
from evomerge.methods.core.merged_update import Scaled, of_sources


def _tsvm(taus: Sequence[Tensor]) -> Tensor:
    import torch

    # 1. the top ⌊min(m, n)/N⌋ triplets of each expert, side by side
    rank = max(1, min(taus[0].shape[-2:]) // len(taus))
    triplets = [svd(tau) for tau in taus]
    u = torch.cat([one[0][..., :rank] for one in triplets], -1)
    s = torch.cat([one[1][..., :rank] for one in triplets], -1)
    vh = torch.cat([one[2][..., :rank, :] for one in triplets], -2)
    # 2. whitened: the nearest orthonormal columns and rows
    return (polar_factor(u) * s[..., None, :]) @ polar_factor(vh)


_TSVM = of_sources(_tsvm)


@merge_method(
    reference="Gargiulo et al. 2025, arXiv:2412.00081, algorithm 1",
    joint=_TSVM[0],
    measure=_TSVM[1],
    relative=True,
    differentiable_in=("lambda",),
    changes=[ON_ONE_THREAD],
    copies=3,
)
def tsvm(
    base: Tensor, experts: Sequence[Tensor], *, lambda_: Lambda = 1.0, measured: Scaled
) -> Tensor:
    """Put the experts' singular vectors side by side, decorrelated: θ₀ + λ U⊥ S V⊥ᵀ.

    Of each τ (m × n) the top ⌊min(m, n)/N⌋ triplets are kept, one at least; concatenated, U and V
    are replaced by their polar factors.
    """
    return measured.added_to(base)
