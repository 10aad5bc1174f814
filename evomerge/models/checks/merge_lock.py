"""Detect experts locked against merging: attention weights transformed where the product stays.

MergeLock multiplies a head's queries and values by invertible matrices, and its keys and its output
projection by their inverses (queries and keys by matrices that commute with rotary embeddings: a
scaling and a rotation per plane). Attention only uses WqᵀWk and WoWv, so nothing is lost but the
common origin with the base, and a merge is noise. A layer is locked where three signs meet:

- the weights are far from the base's;
- each head's product is much nearer to the base's than the weights are;
- and so is the remainder of each weight after its best fit by an invertible matrix times the
  base's, which tells a lock from noise that the product of low-rank weights happens to swallow.

Training moves weights and products alike; so does a permutation of the heads, as the products are
compared head by head. For the same reason a lock together with a permutation is not seen. A lock
that moves the weights by less than `FAR` is not seen either, and does little harm.

Cost: the attention weights of four layers are read. The products of a layer that is far away need
some 30 · width · size² operations (width: a head's, size: all heads'). Measured on one core, size
2048: .4 s a layer, or .5 s where it is far away.
"""

from __future__ import annotations

from dataclasses import astuple
from itertools import product
from typing import Any

import torch
from torch import Tensor

from evomerge.models.alignment.permutable_rows import Rows, permutable_units
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.files.page_release import release
from evomerge.models.messages import campaign_key

FAR = 0.3
"""The distance of weights, relative to the base's, from which a layer's products are compared."""

LOOKED_AT = 4
"""The number of layers read, the first and the last among them; a lock changes every layer."""

CLOSE = 0.5
"""The most that product and remainder of a locked layer differ, as a share of the weights'."""


def lock_of(base: Checkpoint, expert: Checkpoint) -> str | None:
    """Describe the lock on an expert's attention; None if there is none.

    `LOOKED_AT` layers are read, evenly spaced; the first locked one decides. Models whose attention
    `evomerge.models.alignment.permutable_rows` does not know are not looked at.
    """
    for layer, (q, k, v, o) in _looked_at(base):
        for what, one, other in (("queries and keys", q, k), ("values and output", o, v)):
            prefix = f"{base.layout.prefix}.{layer}."
            ours = [_heads(base, prefix, part, q.count) for part in (one, other)]
            theirs = [_heads(expert, prefix, part, q.count) for part in (one, other)]
            found = _locked(ours, theirs)
            for source, part in product((base, expert), (one, other)):
                release(source.mapped(prefix + part.suffix))
            if found is not None:
                far, close = found
                return (
                    f"{campaign_key(expert.name)}: locked against merging (MergeLock)? In layer "
                    f"{layer} the weights of {what} differ from the base's by {far:.2f} of their "
                    f"size, but what they compute together by {close:.2f}, so that merged weights "
                    "would be noise"
                )
    return None


def _looked_at(base: Checkpoint) -> list[tuple[int, list[Rows]]]:
    """Return the layers that are read, each with the rows of its q, k, v and o."""

    def find() -> list[tuple[int, list[tuple[Any, ...]]]]:
        flags = {"trust_remote_code": base.flags["trust_remote_code"]}
        units = enumerate(permutable_units(base.config, **flags))
        known = [(layer, one.heads) for layer, one in units if one.heads is not None]
        last = max(len(known) - 1, 0)
        places = dict.fromkeys(round(i * last / (LOOKED_AT - 1)) for i in range(LOOKED_AT))
        return [
            (layer, [astuple(rows) for rows in (heads.q, heads.k, heads.v, heads.o)])
            for layer, heads in (known[i] for i in places if known)
        ]

    found = base.remembered("layers looked at for a lock", find)
    return [(layer, [Rows(*rows) for rows in parts]) for layer, parts in found]


def _heads(source: Checkpoint, prefix: str, part: Rows, count: int) -> Tensor:
    """Read a weight per head, float32 (count, width, hidden); KV heads repeated for their heads."""
    rows = part.flatten(source.read(prefix + part.suffix)).reshape(part.count, part.width, -1)
    return rows.repeat_interleave(count // part.count, dim=0)


def _locked(ours: list[Tensor], theirs: list[Tensor]) -> tuple[float, float] | None:
    """Return the distances of weights and of products, relative to the base's, if locked."""
    # sign 1: the weights are far from the base's
    far = max(_distance(a, b) for a, b in zip(ours, theirs, strict=True))
    bound = CLOSE * min(far, 1.0)
    if not far >= FAR or ours[0].shape != ours[1].shape:
        return None
    # sign 2: each head's product is near
    close = _product_distance(ours, theirs)
    if not close < bound:
        return None
    # sign 3: an invertible matrix explains each weight
    rest = max(_remainder(a, b) for a, b in zip(ours, theirs, strict=True))
    return (far, close) if rest < bound else None


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return float((theirs - ours).norm() / ours.norm())


def _product_distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Compute ‖AᵀB − A₀ᵀB₀‖ / ‖A₀ᵀB₀‖ over all heads, by ⟨AᵀB, CᵀD⟩ = Σ ACᵀ ∘ BDᵀ."""

    def inner(one: list[Tensor], other: list[Tensor]) -> float:
        grams = [(a @ b.mT).double() for a, b in zip(one, other, strict=True)]
        return float((grams[0] * grams[1]).sum())

    size = inner(ours, ours)
    squared = inner(theirs, theirs) - 2 * inner(theirs, ours) + size
    return float(max(squared, 0.0) / size) ** 0.5 if size > 0 else float("inf")


def _remainder(ours: Tensor, theirs: Tensor) -> float:
    """Compute the minimum over M of ‖W − M·W₀‖ / ‖W‖, M (width, width) for each head."""
    cross, gram = (theirs @ ours.mT).double(), (ours @ ours.mT).double()
    width = gram.shape[-1]
    ridge = 1e-9 * gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)
    solved = torch.linalg.solve(gram + ridge[:, None, None] * torch.eye(width), cross.mT)
    explained = float((cross.mT * solved).sum())
    size = float(theirs.double().square().sum())
    return float(max(size - explained, 0.0) / size) ** 0.5
