"""The KV cache of rows being generated: taken out of packs, added to, thinned out.

Rows stand side by side, padded on the left, so that all of them go on at the same place. Layers
with a window keep everything too; their mask alone narrows what they see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from typing_extensions import override

ROOM = 32
"""Tokens for which room is made at a time, so that a step need not copy what is there."""


class RowsCache(Cache):
    """Keys and values of rows side by side.

    Attributes:
        mask: bool [rows, tokens], false where a row is padded; whoever adds a token lengthens it.
    """

    def __init__(self, mask: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """`layers`: the keys and values of each, [rows, heads, tokens, head size]."""
        super().__init__(layers=[_Layer(keys, values) for keys, values in layers])
        self.mask = mask

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, without the padding that all of them have."""
        chosen = torch.tensor(rows, device=self.mask.device)
        mask = self.mask[chosen]
        first = int(mask.any(0).int().argmax())
        self.mask = mask[:, first:]
        for layer in self.layers:
            layer.keep(chosen, first)


def unpacked(cache: DynamicCache, paths: Sequence[tuple[int, np.ndarray]]) -> RowsCache:
    """Take rows that were read in packs out of the packs' cache, padded on the left to the longest.

    Args:
        cache: keys and values of the packs, [packs, heads, length, head size] in each layer.
        paths: (pack, places of the row's tokens in it) of each row.
    """
    # 1. For each row and token, its place in its pack; padding takes the first token's, unseen.
    longest = max(len(path) for _, path in paths)
    places = torch.zeros((len(paths), longest), dtype=torch.int64)
    mask = torch.zeros((len(paths), longest), dtype=torch.bool)
    for row, (_, path) in enumerate(paths):
        places[row, longest - len(path) :] = torch.from_numpy(path)
        mask[row, longest - len(path) :] = True
    packs = torch.tensor([[pack] for pack, _ in paths])

    # 2. Gather them in each layer; beginnings that rows share are copied to each.
    def take(held: Tensor) -> Tensor:
        # Layers may be on several devices.
        at = packs.to(held.device), places.to(held.device)
        return held.transpose(1, 2)[at].transpose(1, 2)

    layers = [(take(layer.keys), take(layer.values)) for layer in cache.layers]
    return RowsCache(mask.to(layers[0][0].device), layers)


def joined(caches: Sequence[RowsCache]) -> RowsCache:
    """Join the rows of all caches in one, the shorter padded on the left."""
    if len(caches) == 1:
        return caches[0]
    lacking = [max(c.mask.shape[1] for c in caches) - c.mask.shape[1] for c in caches]

    def together(held: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(h, (0, 0, n, 0)) for h, n in zip(held, lacking, strict=True)])

    masks = [pad(c.mask, (n, 0)) for c, n in zip(caches, lacking, strict=True)]
    layers = [
        (together([layer.keys for layer in layers]), together([layer.values for layer in layers]))
        for layers in zip(*(c.layers for c in caches), strict=True)
    ]
    return RowsCache(torch.cat(masks), layers)


class _Layer(DynamicLayer):
    """Holds one layer's keys and values: the beginnings of buffers with room for more."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._buffers = [keys, values]
        self.keys, self.values = keys, values

    @override
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        # Buffers grow by more than is needed; else new tokens are written behind the others.
        now = self.keys.shape[-2]
        then = now + key_states.shape[-2]
        if (lacking := then - self._buffers[0].shape[-2]) > 0:
            self._buffers = [pad(held, (0, 0, 0, lacking + ROOM)) for held in self._buffers]
        for held, more in zip(self._buffers, (key_states, value_states), strict=True):
            held[:, :, now:then] = more
        return self._show(then)

    def keep(self, rows: Tensor, first: int) -> None:
        """Keep rows at these places only, and their tokens from `first` on."""
        length = self.keys.shape[-2] - first
        rows = rows.to(self._buffers[0].device)
        self._buffers = [held.index_select(0, rows)[:, :, first:] for held in self._buffers]
        self._show(length)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (held[:, :, :length] for held in self._buffers)
        return self.keys, self.values
