"""Merges by singular vectors whose result the sources decide alone, up to λ: TSVM, Iso-C, WUDI.

A tensor of two or more dimensions is a matrix, or a stack of them, over its last two; of one
dimension, experts are averaged, as the papers do. Directions whose singular value is zero (to
rounding) are left out: they are arbitrary, and orthogonalising would blow them up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evomerge.methods.entries import Entries
from evomerge.methods.registry import Tensor, View, merge_method
from evomerge.methods.task_arithmetic import Lambda


@dataclass(frozen=True)
class Update:
    """A merged task vector: (n,) in the arithmetic's dtype."""

    values: Tensor

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return int(self.values.nbytes)


class Scaled(NamedTuple):
    """A merged task vector, entry by entry, and λ."""

    update: Any
    scale: float

    def added_to(self, base: Tensor) -> Tensor:
        """θ₀ + λΔ."""
        return base + self.update * self.scale


def svd(matrix: Tensor, part_of: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """U (…, m, r), S (…, r), Vᵀ (…, r, n) with r = min(m, n); triplets of no weight are zeros.

    Of no weight are singular values within rounding of zero, as numpy's `matrix_rank` has it; where
    the matrix is what a projection left of `part_of`, within the rounding of that. All triplets are
    NaN where an entry is not finite: that is refused in the result, as elsewhere.
    """
    import torch

    u, s, vh = torch.linalg.svd(matrix.nan_to_num(0.0, 0.0, 0.0), full_matrices=False)
    size = s[..., 0] if part_of is None else torch.linalg.vector_norm(part_of, dim=(-2, -1))
    cutoff = size * max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps
    there = (s > cutoff[..., None]).to(matrix.dtype)
    if not torch.isfinite(matrix).all():
        there = there * torch.nan
    return u * there[..., None, :], s * there, vh * there[..., None]


def polar_factor(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows) on the matrix's range."""
    u, _, vh = svd(matrix)
    return u @ vh


def mean(taus: Sequence[Tensor]) -> Tensor:
    """What the matrix methods do where there is no matrix."""
    return sum(taus[1:], taus[0]) / len(taus)


def _of_sources(
    merge: Callable[[Sequence[Tensor]], Tensor],
) -> tuple[Callable[[View], Update], Callable[..., Scaled]]:
    """A method's `joint` and `measure`, from what it makes of task vectors that are matrices."""

    def update(view: View) -> Update:
        taus = [tau.view(*view.shape) for tau in view.taus(slice(None))]
        return Update((merge(taus) if taus[0].dim() > 1 else mean(taus)).reshape(-1))

    def scaled(view: View, *, lambda_: float, statistics: Update | None = None) -> Scaled:
        return Scaled(Entries((statistics or update(view)).values), lambda_)

    update.__name__ = update.__qualname__ = f"{merge.__name__}_update"  # what it is stored under
    return update, scaled


def _tsvm(taus: Sequence[Tensor]) -> Tensor:
    import torch

    rank = max(1, min(taus[0].shape[-2:]) // len(taus))
    triplets = [svd(tau) for tau in taus]
    u = torch.cat([one[0][..., :rank] for one in triplets], -1)
    s = torch.cat([one[1][..., :rank] for one in triplets], -1)
    vh = torch.cat([one[2][..., :rank, :] for one in triplets], -2)
    return (polar_factor(u) * s[..., None, :]) @ polar_factor(vh)


_TSVM = _of_sources(_tsvm)


@merge_method(
    reference="Gargiulo et al. 2025, arXiv:2412.00081, algorithm 1",
    joint=_TSVM[0],
    measure=_TSVM[1],
    relative=True,
)
def tsvm(
    base: Tensor, experts: Sequence[Tensor], *, lambda_: Lambda = 1.0, measured: Scaled
) -> Tensor:
    """θ₀ + λ U⊥ S V⊥ᵀ: the experts' singular vectors side by side, decorrelated.

    Of each τ (m × n) the top ⌊min(m, n)/N⌋ triplets are kept, one at least; concatenated, U and V
    are replaced by their polar factors.
    """
    return measured.added_to(base)


def flattened(matrix: Tensor) -> Tensor:
    """Iso-C's step: every singular value becomes their mean (over those that are not zero)."""
    u, s, vh = svd(matrix)
    count = (s > 0).sum(-1).clamp(min=1)
    return u @ vh * (s.sum(-1) / count)[..., None, None]


def _iso_c(taus: Sequence[Tensor]) -> Tensor:
    return flattened(sum(taus[1:], taus[0]))


_ISO_C = _of_sources(_iso_c)


@merge_method(
    reference="Marczak et al. 2025, arXiv:2502.04959, algorithm 1",
    joint=_ISO_C[0],
    measure=_ISO_C[1],
    relative=True,
)
def iso_c(
    base: Tensor, experts: Sequence[Tensor], *, lambda_: Lambda = 1.0, measured: Scaled
) -> Tensor:
    """θ₀ + λ σ̄ U Vᵀ of the SVD of Σ τ, σ̄ the mean of its singular values.

    Where Σ τ has not full rank (adapters), σ̄ is the mean over its rank: Σ σ is kept, as it is at
    full rank, and directions that no expert changed stay unchanged.
    """
    return measured.added_to(base)


def _wudi(taus: Sequence[Tensor]) -> Tensor:
    import torch

    wide = [tau.double() for tau in taus]
    grams = [tau.mT @ tau for tau in wide]
    energies = [gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] for gram in grams]
    normed = [g / torch.where(e > 0, e, 1.0) for g, e in zip(grams, energies, strict=True)]
    pulled = [tau @ gram for tau, gram in zip(wide, normed, strict=True)]
    inverse = torch.linalg.pinv(sum(normed[1:], normed[0]).nan_to_num(0.0), hermitian=True)
    return (sum(pulled[1:], pulled[0]) @ inverse).to(taus[0].dtype)


_WUDI = _of_sources(_wudi)


@merge_method(
    reference="Cheng et al. 2025, arXiv:2503.08099, the minimum of eq. 11 in closed form",
    joint=_WUDI[0],
    measure=_WUDI[1],
    relative=True,
)
def wudi(
    base: Tensor, experts: Sequence[Tensor], *, lambda_: Lambda = 1.0, measured: Scaled
) -> Tensor:
    """θ₀ + λm, m the least Σ ‖(m − τᵢ)τᵢᵀ‖²/‖τᵢ‖²: that which disturbs each expert's inputs least.

    m = (Σ τᵢτᵢᵀτᵢ/‖τᵢ‖²)(Σ τᵢᵀτᵢ/‖τᵢ‖²)⁺ with Frobenius norms, in float64.
    """
    return measured.added_to(base)
