"""Passthrough: one source's own weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from evomerge.methods import Range, Tensor, merge_method


@merge_method(reference="the source itself", experts=(0, 1))
def passthrough(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    scale: Annotated[float, Range(-10.0, 10.0)] = 1.0,
) -> Tensor:
    """Copy the expert's own weights (the base's when no expert is named), times `scale`."""
    return (experts[0] if experts else base) * scale
