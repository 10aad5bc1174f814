"""Twin-Merging, static: shared knowledge, and a low-rank share of what each expert has beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from evomerge.methods import Lambda, PerExpert, Range, Tensor, merge_method
from evomerge.methods.core.decompositions import ON_ONE_THREAD, svd


@merge_method(
    reference="Lu et al. 2024, arXiv:2406.15479, eqs. 3 and 4, with fixed weights",
    elementwise=False,
    relative=True,
    changes=[ON_ONE_THREAD],
    copies=4,
)
def twin(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Annotated[Sequence[float], PerExpert(0.3, low=-10.0, high=10.0)],
    shared: Annotated[float, Range(0.0, 2.0)] = 0.3,
    rank: Annotated[float, Range(0.0, 1.0)] = 0.1,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Add shared and compressed exclusive knowledge: θ₀ + λ(Δ + Σ wᵢ SVD_r(τᵢ − Δ)).

    Δ = `shared` · Σ τ is the shared expert's; of what each expert has beside it the share `rank` of
    singular directions is kept, at least one unless `rank` is 0 (of vectors everything). Weights,
    which the paper's router chooses input by input, are constants here, left to the search.
    """
    # eq. 3: the shared expert; then what each has beside it, compressed (eq. 4)
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
