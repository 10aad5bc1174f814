"""RAM: the mean of the changes that experts share, and whole what only one changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from evomerge.methods import Lambda, Range, Tensor, merge_method

Epsilon = Annotated[float, Range(0.0, 1.0)]
REFERENCE = "arXiv:2601.13572 (RAM); as in mergekit 0.1.5"


def changed_by(taus: Sequence[Tensor], epsilon: Any) -> tuple[list[Tensor], Tensor]:
    """Mark the entries that each expert changed, and count the experts that did."""
    changed = [(tau.abs() > epsilon).to(tau.dtype) for tau in taus]
    return changed, sum(changed[1:], changed[0])


@merge_method(reference=REFERENCE, relative=True)
def ram(
    base: Tensor, experts: Sequence[Tensor], *, epsilon: Epsilon = 1e-5, lambda_: Lambda = 1.0
) -> Tensor:
    """Add λ times the mean of τ over the experts that changed the entry by more than ε."""
    taus = [expert - base for expert in experts]
    changed, count = changed_by(taus, epsilon)
    parts = [tau * own for tau, own in zip(taus, changed, strict=True)]
    return base + sum(parts[1:], parts[0]) / count.clamp(min=1.0) * lambda_
