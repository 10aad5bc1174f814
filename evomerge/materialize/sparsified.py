"""A view of the sources whose task vectors were made sparse, before a method merges them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from evomerge.materialize.plan import as_tensors
from evomerge.methods import At, View
from evomerge.methods.core.slices import part_of
from evomerge.methods.core.sparsify import Sparsifier
from evomerge.methods.core.view import Statistic


def sparsified(
    view: View,
    sparsifier: Sparsifier,
    arguments: Mapping[str, Any],
    at: Callable[[int], At],
    relative: bool,
    statistics: Sequence[Statistic] | None = None,
) -> View:
    """Return the view of what is left: whole tensors in its dtype, held until they are merged.

    Args:
        arguments: the sparsifier's; those per expert as sequences.
        at: from a flat index to the place of a slice that begins there.
        relative: the experts are then task vectors, and the base is zero; else what is left of
            them is added to the base.
        statistics: the sparsifier's, of each expert.
    """
    kept, factors = sparsifier(view, {**arguments, "at": at}, statistics)
    kept, factors = as_tensors([kept, factors or [1.0] * len(kept)])
    left = _task_vector if relative else _expert
    experts = [torch.empty_like(view.base, dtype=view.dtype) for _ in view.experts]
    for part in view.parts():
        place, base = at(part.start), view.base[part]
        for i, expert in enumerate(view.experts):
            # as the only one of its place, so that all experts share one compiled function
            own = part_of(kept[i], part), place._replace(words=place.words[i : i + 1])
            experts[i][part] = view.run(left, base, expert[part], view.dtype, *own, factors[i])
    base = torch.zeros_like(experts[0]) if relative else view.base
    return replace(view, base=base, experts=experts)


def _task_vector(
    base: Tensor, expert: Tensor, dtype: torch.dtype, kept: Any, at: At, factor: Tensor
) -> Tensor:
    left: Tensor = kept.of(expert.to(dtype) - base.to(dtype), at, 0) * factor
    return left


def _expert(
    base: Tensor, expert: Tensor, dtype: torch.dtype, kept: Any, at: At, factor: Tensor
) -> Tensor:
    return base.to(dtype) + _task_vector(base, expert, dtype, kept, at, factor)
