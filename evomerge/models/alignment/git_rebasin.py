"""Align an expert to the base before merging: Git Re-Basin by weight matching.

Git Re-Basin by weight matching (Ainsworth, Hayase & Srinivasa 2022, arXiv:2209.04836, section 3.2):
each group of units is permuted so that Σ ⟨base unit i, expert unit π(i)⟩ over all of its tensors is
greatest. The paper ascends coordinate by coordinate because neighbouring layers share a
permutation. Here the residual stream keeps its order, so no two groups share one, and one linear
sum assignment per group is the optimum. The expert's outputs do not change.

Cost: per layer one product of the base's and the expert's units, 6 · n² · size operations for n
units of a gated MLP; on one core 7 s a layer for n = 5504, size 2048. An expert finetuned from the
base needs no assignment, since each unit's best partner is then another one; a stranger's takes as
long again. The matrix of similarities and a copy take 8n² bytes (1.6 GB for n = 14336), an
assignment as much again.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from evomerge.common.digest import content_digest
from evomerge.common.errors import InputError
from evomerge.models.alignment.permutable_rows import Heads, LayerUnits, Rows, permutable_units
from evomerge.models.checkpoint import Checkpoint, tensor_digest
from evomerge.models.files.finite import NonFinite
from evomerge.models.messages import campaign_key

UNITS, HEADS = "MLP units", "attention heads"

_FAVOUR = 1e-5
"""The bonus for staying in place, as a share of the largest similarity, so that rounding does not
decide ties."""


@dataclass(frozen=True)
class Move:
    """A permutation of a tensor's units: unit i becomes the expert's `order[i]`, int64 (count,)."""

    rows: Rows
    order: np.ndarray


@dataclass(frozen=True)
class Alignment:
    """How an expert is brought into the base's order.

    Attributes:
        moves: canonical name → the moves in that tensor, all along one dimension; a tensor that
            stays as it is has no entry.
        moved: `UNITS` or `HEADS` → how many changed places, and of how many that could have.
    """

    moves: Mapping[str, Sequence[Move]]
    moved: Mapping[str, tuple[int, int]]

    def apply(self, name: str, tensor: Tensor) -> Tensor:
        """Return the tensor of this name in the base's order; itself where nothing moves."""
        moves = self.moves.get(name)
        if not moves:
            return tensor
        dim = moves[0].rows.dim
        index = np.arange(tensor.shape[dim])
        for rows, order in ((move.rows, move.order) for move in moves):
            here = slice(rows.start, rows.start + rows.count * rows.width)
            index[here] = index[here].reshape(rows.count, rows.width)[order].reshape(-1)
        return tensor.index_select(dim, torch.from_numpy(index))

    @cached_property
    def digest(self) -> str | None:
        """32 hex digits over the moves; None where there are none."""
        if not self.moves:
            return None
        return content_digest(
            {
                name: [[m.rows.dim, m.rows.start, m.rows.width, _digest_of(m.order)] for m in moves]
                for name, moves in self.moves.items()
            }
        )


class Aligned(Checkpoint):
    """An expert in the base's order: the tensors that are permuted are so at every read.

    Its digest is over the expert's own and the permutations; where nothing moves it is the
    expert's own.

    Attributes:
        unaligned: the expert as it is stored.
        base: what it is aligned to.
    """

    def __init__(
        self, unaligned: Checkpoint, base: Checkpoint, alignment: Alignment | None = None
    ) -> None:
        """Without an `alignment` one is found when it is first needed."""
        super().__init__(
            unaligned.name,
            unaligned.spec,
            unaligned.folder,
            unaligned.config,
            unaligned.layout,
            unaligned._tensors,
            unaligned._flags,
        )
        self.unaligned, self.base, self._given = unaligned, base, alignment

    @cached_property
    def alignment(self) -> Alignment:
        """The permutations, found once.

        Raises:
            InputError: a weight of one of the models is not finite.
        """
        return self._given or align(self.base, self.unaligned)

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        return self.unaligned.shape(name)

    @override
    def dtype(self, name: str) -> torch.dtype:
        return self.unaligned.dtype(name)

    @override
    def read(self, name: str) -> Tensor:
        tensor = self.unaligned.read(name)
        spec = self.layout.tensor(name)
        return tensor if spec.layer is None else self.alignment.apply(spec.name, tensor)

    @property
    @override
    def non_finite(self) -> Mapping[str, NonFinite]:
        return self.unaligned.non_finite

    @cached_property
    def tensor_digests(self) -> Mapping[str, str]:
        """Canonical name → SHA-256 over dtype, shape and bytes, after the permutation."""
        moved = {name: tensor_digest(self.read(name)) for name in self.alignment.moves}
        return {**self.unaligned.tensor_digests, **moved}

    @cached_property
    def digest(self) -> str:
        """32 hex digits over the expert's digest and the permutations."""
        moves = self.alignment.digest
        own = self.unaligned.digest
        return own if moves is None else content_digest({"aligned": own, "moves": moves})

    def __reduce__(self) -> tuple[Any, ...]:
        return Aligned, (self.unaligned, self.base, self.alignment)


def align(base: Checkpoint, expert: Checkpoint) -> Alignment:
    """Match the units of two models of the same tensors and shapes, layer by layer.

    Raises:
        InputError: a weight that is compared is not finite; names the model and the layer.
    """
    moves: dict[str, list[Move]] = defaultdict(list)
    moved = {UNITS: (0, 0), HEADS: (0, 0)}
    trust = {"trust_remote_code": base._flags["trust_remote_code"]}
    for layer, units in enumerate(permutable_units(base.config, **trust)):
        pair = _Pair(base, expert, f"{base.layout.prefix}.{layer}.")
        try:
            found = [*pair.matched(units)]
        except ValueError:
            raise InputError(
                f"{campaign_key(expert.name)}: layer {layer} is not finite, or the base's is not, "
                "so that the two cannot be aligned; download the model again"
            ) from None
        for kind, group in found:
            order = group[0].order
            changed, total = moved[kind]
            moved[kind] = (changed + int(_displaced(order).sum()), total + order.size)
            for move in group:
                if _displaced(move.order).any():
                    moves[pair.prefix + move.rows.suffix].append(move)
    return Alignment(dict(moves), {kind: n for kind, n in moved.items() if n[1]})


@dataclass(frozen=True)
class _Pair:
    """One layer in the base and in the expert; `prefix` + suffix is a tensor's name."""

    base: Checkpoint
    expert: Checkpoint
    prefix: str

    def matched(self, units: LayerUnits) -> Iterator[tuple[str, list[Move]]]:
        """Yield `UNITS` or `HEADS` with the moves of one group, for each group of units."""
        for parts in units.mlps:
            order, _ = assigned(self.similarity(parts))
            yield UNITS, [Move(rows, order) for rows in parts]
        if units.heads is not None:
            heads, shared = self.heads(units.heads)
            orders = {units.heads.k.count: shared, units.heads.q.count: heads}
            yield HEADS, [Move(rows, orders[rows.count]) for rows in units.heads.parts]

    def similarity(self, parts: Sequence[Rows]) -> np.ndarray:
        """Compute Σ over all tensors of ⟨base unit i, expert unit j⟩, float32 (count, count)."""
        total = torch.zeros(parts[0].count, parts[0].count)
        for rows in parts:
            ours, theirs = (m.read(self.prefix + rows.suffix) for m in (self.base, self.expert))
            total.addmm_(rows.flatten(ours), rows.flatten(theirs).T)
        return total.numpy()

    def heads(self, heads: Heads) -> tuple[np.ndarray, np.ndarray]:
        """Find the best orders of heads and of KV heads together, int64 (heads,), (KV heads,).

        A group of query heads goes where its KV head goes, so that a pair of KV heads is worth
        their own similarity and that of their query heads, assigned to each other.
        """
        count, shared = heads.q.count, heads.k.count
        # 1. without groups, one order serves both
        queries = self.similarity([rows for rows in heads.parts if rows.count == count])
        if count == shared:
            order, _ = assigned(queries)
            return order, order
        # 2. for each pair of KV heads, the best assignment of the query heads within
        size = count // shared
        blocks = queries.reshape(shared, size, shared, size).swapaxes(1, 2)
        within = [[assigned(block) for block in row] for row in blocks]
        # 3. KV heads by their own similarity and that of their query heads
        worth = np.array([[value for _, value in row] for row in within], dtype=np.float32)
        keys = self.similarity([rows for rows in heads.parts if rows.count == shared])
        order, _ = assigned(keys + worth)
        chosen = [within[ours][theirs][0] + theirs * size for ours, theirs in enumerate(order)]
        return np.concatenate(chosen), order


def assigned(similarity: np.ndarray) -> tuple[np.ndarray, float]:
    """Assign each row a column, each once, for the greatest sum; int64 (n,), and that sum.

    Raises:
        ValueError: a similarity is not finite.
    """
    from scipy.optimize import linear_sum_assignment  # late: half a second

    if not np.isfinite(similarity).all():
        raise ValueError("similarities are not finite")
    places = np.arange(len(similarity))
    favoured = similarity.copy()
    favoured[places, places] += _FAVOUR * np.abs(similarity).max()
    order = favoured.argmax(axis=1)
    if np.unique(order).size < order.size:  # else nothing can be greater than every row's greatest
        order = linear_sum_assignment(favoured, maximize=True)[1]
    return order, float(similarity[places, order].sum(dtype=np.float64))


def _displaced(order: np.ndarray) -> np.ndarray:
    return order != np.arange(order.size)


def _digest_of(order: np.ndarray) -> str:
    return hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
