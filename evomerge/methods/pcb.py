"""PCB-merging: entries compete by their size within a task and their agreement across tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from evomerge.methods import Lambda, Range, Tensor, merge_method

_TAIL = 1e-4
"""Share of the smallest, and of the largest |τ| that are clipped."""


@merge_method(
    reference="Du et al. 2024, arXiv:2410.02396, eqs. 1 to 4",
    elementwise=False,
    relative=True,
    copies=6,
)
def pcb(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    density: Annotated[float, Range(0.0, 1.0)] = 0.1,
    lambda_: Lambda = 1.2,
) -> Tensor:
    """Let entries compete: θ₀ + λ Σ β̂ᵢτᵢ/Σ β̂, of the top `density` share of β.

    β = exp(N s) tanh(τ ⊙ Στ).

    s is |τ| scaled to [0, 1] and squared, after 10⁻⁴ of the entries at either end are clipped; β̂ is
    β with all below its top share set to that bound, scaled to [0, 1]. Per tensor (the paper: over
    the model). Where all of an expert's β are equal, its β̂ are 1.
    """
    import torch

    # 1. intra-balancing: |τ|, tails clipped, within [0, 1] and squared (eq. 1)
    taus = torch.stack([expert - base for expert in experts]).flatten(1)
    magnitude = _clipped(taus.abs(), _TAIL, _TAIL)
    balance = torch.exp(len(experts) * _unit(magnitude, 0.0) ** 2)
    # 2. inter-balancing: agreement with the sum (eq. 2)
    beta = balance * torch.tanh(taus * _in_order(taus))
    # 3. the top share of β competes; the rest is at its bound, and counts 0 (eq. 3)
    drive = _unit(_clipped(beta, 1 - density, 0.0), 1.0)
    # 4. the mean of what is left of τ, weighted by β̂ (eq. 4)
    merged = _in_order(taus.sign() * magnitude * drive) / _in_order(drive).clamp(min=1e-12)
    return base + merged.view(base.shape) * lambda_


def _clipped(rows: Tensor, low: float, high: float) -> Tensor:
    """Clip each row to its entries of rank ⌊low·n⌋ and ⌊(1−high)n − 1⌋ (from 0)."""
    n = rows.shape[1]
    first, last = min(int(low * n), n - 1), max(int((1 - high) * n - 1), 0)
    least = rows.kthvalue(first + 1, dim=1, keepdim=True).values
    greatest = rows.kthvalue(last + 1, dim=1, keepdim=True).values
    return rows.clamp(least, greatest.maximum(least))


def _unit(rows: Tensor, flat: float) -> Tensor:
    """Scale each row to [0, 1]; `flat` where its entries are all equal."""
    import torch

    least, greatest = rows.aminmax(dim=1, keepdim=True)
    span = greatest - least
    return torch.where(span == 0, flat, (rows - least) / torch.where(span == 0, 1.0, span))


def _in_order(rows: Tensor) -> Tensor:
    """Add up the rows in order."""
    return sum(rows[1:].unbind(0), rows[0])
