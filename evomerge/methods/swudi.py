"""SWUDI: WUDI's closed form, stopped early direction by direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from evomerge.common.one_thread import one_thread
from evomerge.methods import Lambda, Range, Tensor, View, merge_method
from evomerge.methods.core.merged_update import Scaled, mean
from evomerge.methods.core.slices import Entries

Start = Literal["sum", "mean", "none"]


@dataclass(frozen=True)
class Directions:
    """The eigenvectors of C = Σ τᵢᵀτᵢ/‖τᵢ‖², the largest eigenvalue first; nothing of vectors.

    Attributes:
        vectors: V (in, in), in the arithmetic's dtype.
        values: w, float64 (in,), 0 within rounding of it.
        added: V's coordinates of Σ τ, (out, in).
        solved: V's coordinates of WUDI's minimum, (out, in).
    """

    vectors: Tensor
    values: Tensor
    added: Tensor
    solved: Tensor

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        held = (self.vectors, self.values, self.added, self.solved)
        return sum(int(tensor.nbytes) for tensor in held)


def directions(view: View) -> Directions:
    """Decompose the experts' inputs, as their task vectors tell of them."""
    import torch

    from evomerge.common.accelerator import as_float64

    taus = _matrices(view)
    if taus is None:
        return Directions(*(torch.zeros(0, dtype=view.dtype) for _ in range(4)))
    with one_thread():
        # 1. C = Σ τᵢᵀτᵢ/‖τᵢ‖² and D = Σ τᵢτᵢᵀτᵢ/‖τᵢ‖²
        wide = [as_float64(tau) for tau in taus]
        inputs, pulled = wide[0].mT @ wide[0] * 0, wide[0] * 0
        for tau in wide:
            energy = float((tau * tau).sum())
            if energy > 0:
                gram = tau.mT @ tau / energy
                inputs, pulled = inputs + gram, pulled + tau @ gram
        # 2. C = V diag(w) Vᵀ, falling
        values, vectors = torch.linalg.eigh(inputs)
        values, vectors = values.flip(-1), vectors.flip(-1)
        largest = float(values[0])
        there = values > largest * len(values) * torch.finfo(torch.float64).eps
        values = torch.where(there, values, 0.0)
        solved = (pulled @ vectors) * torch.where(there, 1 / torch.where(there, values, 1.0), 0.0)
        added = sum(wide[1:], wide[0]) @ vectors
        kept = [found.to(taus[0]).contiguous() for found in (vectors, added, solved)]
        return Directions(kept[0], values, kept[1], kept[2])


def _matrices(view: View) -> list[Tensor] | None:
    """Return the task vectors, inputs along columns; None of what is no matrix."""
    if len(view.shape) != 2:
        return None
    taus = [tau.view(*view.shape) for tau in view.taus(slice(None))]
    return [tau.mT for tau in taus] if view.transposed else taus


def filtered(
    view: View, known: Directions | None, start: str, weigh: Callable[[Tensor], Tensor]
) -> Tensor:
    """Go from a start towards WUDI's minimum, in each direction by a share.

    Args:
        view: of the task vectors.
        known: their directions.
        start: where from; see `swudi`.
        weigh: from w to the shares f, both float64 (in,).

    Returns:
        The merged task vector, (n,).
    """
    import torch

    if len(view.shape) != 2:
        return mean(view.taus(slice(None)))
    found = known or directions(view)
    with one_thread():
        # θ = θ_start + (D V f/w − θ_start V f) Vᵀ
        share = {"sum": 1.0, "mean": 1 / len(view.experts), "none": 0.0}[start]
        factors = torch.where(found.values > 0, weigh(found.values), 0.0).to(found.vectors)
        total = found.added * share + (found.solved - found.added * share) * factors
        merged = total @ found.vectors.mT
        return (merged.mT if view.transposed else merged).reshape(-1)


def shared_out(
    view: View,
    *,
    share: float,
    log_time: float,
    start: str,
    lambda_: float,
    statistics: Directions | None = None,
) -> Scaled:
    """Stop each direction at 1 − exp(−wt), and leave the least out."""

    def weigh(values: Tensor) -> Tensor:
        import torch

        kept = torch.arange(len(values), device=values.device) < math.ceil(share * len(values))
        return (1 - torch.exp(-values * 10**log_time)) * kept

    return Scaled(Entries(filtered(view, statistics, start, weigh)), lambda_)


@merge_method(
    reference="SWUDI, successor of OptMerge (Wei et al. 2026, arXiv:2505.19892), after its code",
    joint=directions,
    measure=shared_out,
    relative=True,
    differentiable_in=("lambda",),
    copies=6,
    squares=4,
)
def swudi(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    share: Annotated[float, Range(0.0, 1.0)] = 0.85,
    log_time: Annotated[float, Range(0.0, 6.0)] = 2.5,
    start: Start = "mean",
    lambda_: Lambda = 1.0,
    measured: Scaled,
) -> Tensor:
    """Go part of the way to WUDI's minimum: θ₀ + λ(m₀ + (D V f/w − m₀ V f)Vᵀ).

    C = Σ τᵢᵀτᵢ/‖τᵢ‖² = V diag(w) Vᵀ and D = Σ τᵢτᵢᵀτᵢ/‖τᵢ‖². f = 1 − exp(−wt), t = 10^`log_time`,
    on the `share` of directions of largest w, and 0 on the others, where m₀ stays: the `sum` of the
    task vectors (which wants λ about 1/N), their `mean` or `none`. f = 1 from none is `wudi`.
    Tensors that are no matrices are averaged.
    """
    return measured.added_to(base)
