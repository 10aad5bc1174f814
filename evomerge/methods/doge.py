"""DOGE: a shared correction makes experts agree with the merge, outside what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from evomerge.common.one_thread import one_thread
from evomerge.methods import Entries, Lambda, PerExpert, Range, Tensor, View, merge_method
from evomerge.methods.core.decompositions import svd
from evomerge.methods.core.trim import trims

_SUBSPACE = 6
"""The shared subspace has a sixth of the directions (the paper's `subspace`)."""
_STEPS = 200
_PRECISION = 1e-8
"""Of the normal equations' residual, relative to the first, at which the iteration ends."""


@dataclass(frozen=True)
class Correction:
    """The correction Δ as it depends on η: Δ = (`at_zero`/η − `lasting`)/ℓ, ℓ = Σ 1/‖τᵢ‖.

    Attributes:
        at_zero: (n,), in the arithmetic's dtype.
        lasting: likewise.
        norms: float64 (experts,), ‖τᵢ‖.
    """

    at_zero: Tensor
    lasting: Tensor
    norms: Tensor

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return int(self.at_zero.nbytes + self.lasting.nbytes)


def correction(view: View) -> Correction:
    """Solve for the correction; of vectors it is zero."""
    import torch

    from evomerge.common.accelerator import as_float64

    with one_thread():
        held = view.taus(slice(None))
        taus = [as_float64(tau.view(*view.shape)) for tau in held]
        norms = torch.stack([torch.linalg.vector_norm(tau) for tau in taus]).cpu()
        if taus[0].dim() < 2 or not norms.any():
            zero = torch.zeros(view.base.numel(), dtype=view.dtype, device=view.base.device)
            return Correction(zero, zero.clone(), norms)
        # 1. Q = I − P leaves out what the experts share
        taus = [tau.reshape(len(tau), -1) for tau in taus]
        shared = _shared(taus)
        # 2. the rows' products with each τ: with Δ, with Σ τᵢ/‖τᵢ‖, and with τ itself
        stacked = torch.stack(taus)
        there = [tau / norm for tau, norm in zip(taus, norms.tolist(), strict=True) if norm > 0]
        pulled = (stacked * sum(there[1:], there[0])).sum(-1)
        own = (stacked * stacked).sum(-1)
        # 3. the least Δ of least residual is linear in the right-hand side, and so in η
        total = sum(1 / norm for norm in norms.tolist() if norm > 0)
        at_zero, lasting = (
            (_least_squares(stacked, shared, side) / total).reshape(-1).to(held[0])
            for side in (own, pulled)
        )
        return Correction(at_zero, lasting, norms)


def _shared(taus: Sequence[Tensor]) -> Tensor:
    """Find an orthonormal basis of the leading directions that the experts have, (out, k)."""
    import torch

    rank = min(taus[0].shape)
    each = max(1, rank // len(taus))
    sides = torch.cat([svd(tau)[0][:, :each] for tau in taus], -1)
    return svd(sides)[0][:, : max(1, rank // _SUBSPACE)]


def _least_squares(stacked: Tensor, shared: Tensor, side: Tensor) -> Tensor:
    """Minimise Σⱼ Σ_rows (sideⱼ − ⟨τⱼ, QZ⟩)² by CGLS from zero, which finds the least Z.

    Args:
        stacked: float64 (experts, out, in), τⱼ.
        shared: U (out, k), orthonormal; Q = I − UUᵀ.
        side: float64 (experts, out).

    Returns:
        QZ, float64 (out, in).
    """
    import torch

    def outside(matrix: Tensor) -> Tensor:
        return matrix - shared @ (shared.mT @ matrix)

    solution = torch.zeros_like(stacked[0])
    residual = side
    gradient = outside((stacked * residual[..., None]).sum(0))
    direction, energy = gradient, (gradient * gradient).sum()
    enough = energy * _PRECISION**2
    for _ in range(_STEPS):
        if energy <= enough:
            break
        moved = (stacked * direction).sum(-1)
        curvature = (moved * moved).sum()
        if curvature <= 0:
            break
        step = energy / curvature
        solution = solution + direction * step
        residual = residual - moved * step
        gradient = outside((stacked * residual[..., None]).sum(0))
        last, energy = energy, (gradient * gradient).sum()
        direction = gradient + direction * (energy / last)
    return solution


class Corrected(NamedTuple):
    """What a candidate makes of the correction.

    Attributes:
        trims: which entries of each expert count.
        at_zero: Δη, where η is small, entry by entry.
        lasting: what is taken off it for each unit of η.
        scales: 1/‖τᵢ‖.
    """

    trims: Sequence[Any]
    at_zero: Any
    lasting: Any
    scales: Sequence[float]


def corrected(
    view: View, *, density: Sequence[float], statistics: Correction | None = None
) -> Corrected:
    """Trim the task vectors by magnitude, beside the correction of whole ones."""
    known = statistics or correction(view)
    scales = [1 / norm if norm > 0 else 0.0 for norm in known.norms.tolist()]
    kept = trims(view, density=density)
    return Corrected(kept, Entries(known.at_zero), Entries(known.lasting), scales)


@merge_method(
    reference="Wei et al. 2025, arXiv:2501.01230, eqs. 6 to 9, the least solution in closed form",
    joint=correction,
    measure=corrected,
    relative=True,
    differentiable_in=("eta", "lambda"),
    copies=8,
)
def doge(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    density: Annotated[Sequence[float], PerExpert(0.3, low=0.0, high=1.0)],
    eta: Annotated[float, Range(0.0, 10.0)] = 0.07,
    lambda_: Lambda = 1.0,
    measured: Corrected,
) -> Tensor:
    """Add equally long task vectors and a correction: θ₀ + λ Σ (η/‖τᵢ‖) mᵢ ⊙ (τᵢ + Δ).

    Δ minimises Σⱼ Σ_rows ⟨τⱼ, τⱼ − Σᵢ (η/‖τᵢ‖)(τᵢ + Δ)⟩² and has no part in the sixth of directions
    that the experts share most; of all such the least is taken, found by conjugate gradients (the
    paper takes 400 steps of Adam, which leave that space). mᵢ keeps the share `density` of largest
    |τᵢ| of each tensor (the paper: of the model). Tensors that are no matrices have no correction.
    """
    import torch

    total = torch.zeros_like(base)
    change = measured.at_zero - measured.lasting * eta
    for i, expert in enumerate(experts):
        tau = expert - base
        kept = measured.trims[i].keep(tau)
        total = total + torch.where(kept, tau * eta + change, 0.0) * measured.scales[i]
    return base + total * lambda_
