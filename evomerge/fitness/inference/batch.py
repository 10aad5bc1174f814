"""Batches: packs of rows as tensors, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.fitness.inference.prefix_packing import Pack


@dataclass(frozen=True)
class Batch:
    """Packs side by side, padded on the right.

    Attributes:
        tokens: int32 [packs, length].
        depths: int32 [packs, length], the tokens' positions in their rows.
        ends: int32 [packs, length]; padding ends at once, so that nothing but itself sees it.
        branches: whether masks and positions are the packs' own; else plain causal ones do.
    """

    tokens: Tensor
    depths: Tensor
    ends: Tensor
    branches: bool

    @classmethod
    def of(cls, packs: Sequence[Pack]) -> Batch:
        """Stack packs, each padded on the right to the longest."""
        length = max(map(len, packs))
        tokens, depths = np.zeros((2, len(packs), length), dtype=np.int32)
        ends = np.tile(np.arange(1, length + 1, dtype=np.int32), (len(packs), 1))
        for i, pack in enumerate(packs):
            tokens[i, : len(pack)] = pack.tokens
            depths[i, : len(pack)] = pack.depths
            ends[i, : len(pack)] = pack.ends
        branches = any(pack.branches for pack in packs)
        of = torch.from_numpy
        return cls(of(tokens), of(depths), of(ends), branches)

    @property
    def size(self) -> int:
        """Number of its tokens, padding included."""
        return self.tokens.numel()


@dataclass(frozen=True)
class PassShape:
    """The shape of a forward pass, from which its seconds and its memory follow.

    Attributes:
        rows: packs, or rows of a generation, side by side.
        length: tokens of each that are read, padding included.
        logits: places at which logits are computed.
        masked: whether it is given a mask [rows, length, length].
        seen: tokens of each row that were in the KV cache before.
        cached: tokens of all rows together for which keys and values are held at its end.
        times: how often it is run.
    """

    rows: int
    length: int
    logits: int
    masked: bool = False
    seen: int = 0
    cached: int = 0
    times: int = 1

    @classmethod
    def of(cls, batch: Batch, logits: int, cached: int = 0) -> PassShape:
        """The shape of the pass that reads a batch."""
        rows, length = batch.tokens.shape
        return cls(rows, length, logits, masked=batch.branches, cached=cached)
