"""Whether merges give a source back: tried on numbers, whatever the methods are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evomerge.methods import find_method
from evomerge.recipe import BASE, Merge

TRIED = 64
"""Entries of the tensors that a merge is tried on."""
CLOSE = 1e-5
"""Largest difference, of entries of size 1, that is rounding alone."""


def gives_source(merges: Sequence[Merge], name: str) -> bool:
    """Tell whether merges of the same sources give one of them back, but for rounding.

    Each is made of random float32 tensors, base and experts. Without merges it is the base.
    """
    whole = [one for merge in merges for one in merge.of_pieces()]
    alike = {(m.method, repr(m.experts), repr(m.parameters), repr(m.sparsifier)): m for m in whole}
    return all(_gives(merge, name) for merge in alike.values()) if merges else name == BASE


def _gives(merge: Merge, name: str) -> bool:
    import torch

    if merge.sparsifier is not None or (name != BASE and name not in merge.experts):
        return False
    method = find_method(merge.method, "space")
    # 1. tensors of which no two are alike
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(TRIED, generator=generator).reshape(8, -1)
    experts = [
        base + torch.randn(base.shape, generator=generator) for _ in range(len(merge.experts))
    ]
    # 2. the merge of them, on one 8 × 8 tensor
    arguments: dict[str, Any] = {
        p.keyword: [values[p.name] for values in merge.experts.values()]
        if p.per_expert
        else merge.parameters[p.name]
        for p in method.parameters.values()
    }
    found = method(base, experts, **arguments)
    # 3. compared with the source
    wanted = base if name == BASE else experts[list(merge.experts).index(name)]
    return bool(torch.allclose(found, wanted, rtol=0, atol=CLOSE))
