"""What a random drop (DARE) leaves of the experts, before a method merges it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from evomerge.materialize.plan import as_tensors
from evomerge.methods.dropping import rescaling, survivors
from evomerge.methods.masks import At, limits
from evomerge.methods.registry import View
from evomerge.recipe import Drop


def thinned(view: View, drop: Drop, at: Callable[[int], At], relative: bool) -> View:
    """The view of what is left: whole tensors in the view's dtype, held until they are merged.

    Args:
        at: from a flat index to the place of a slice that begins there.
        relative: the experts are then task vectors, and the base is zero; else what is left of
            them is added to the base.
    """
    density = [drop.density for _ in view.experts]
    factors = as_tensors(rescaling(view, density=density, rescale=drop.rescale, at=at))
    bounds = limits(density)
    left = _task_vector if relative else _expert
    experts = [torch.empty_like(view.base, dtype=view.dtype) for _ in view.experts]
    for part in view.parts():
        place, base = at(part.start), view.base[part]
        for i, expert in enumerate(view.experts):
            one = place._replace(words=place.words[i : i + 1])
            given = (base, expert[part], view.dtype, one, bounds[i], factors[i])
            experts[i][part] = view.run(left, *given)
    base = torch.zeros_like(experts[0]) if relative else view.base
    return replace(view, base=base, experts=experts)


def _task_vector(
    base: Tensor, expert: Tensor, dtype: torch.dtype, at: At, limit: Tensor, factor: Tensor
) -> Tensor:
    return survivors(expert.to(dtype) - base.to(dtype), at, 0, limit, factor)


def _expert(
    base: Tensor, expert: Tensor, dtype: torch.dtype, at: At, limit: Tensor, factor: Tensor
) -> Tensor:
    return base.to(dtype) + _task_vector(base, expert, dtype, at, limit, factor)
