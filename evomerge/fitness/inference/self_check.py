"""Check that a model reads packed rows, and goes on from a cache, as it reads plain rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from evomerge.fitness.inference.batch import Batch
from evomerge.fitness.inference.kv_cache import RowsCache, unpacked
from evomerge.fitness.inference.memory import ran_out_of_memory
from evomerge.fitness.inference.prefix_packing import Pack, Tokens, pack_rows

TOLERANCE = {torch.float32: 1e-3}
"""Largest difference of logits that is rounding, as a share of their spread; .2 for others."""
MANY = 1 << 20
"""A bound that packs everything together."""


class Passes(Protocol):
    """The forward passes that are checked: see `forward.Forward`."""

    model: Any

    @property
    def config(self) -> Any:
        """The language model's configuration."""

    def logits(
        self, batch: Batch, rows: Tensor, places: Tensor, cache: DynamicCache | None = None
    ) -> Tensor:
        """Compute logits at places of a batch's rows, shape (places, vocabulary)."""

    def step(self, tokens: Sequence[int], live: Sequence[bool], cache: RowsCache) -> Tensor:
        """Compute logits after one more token of each cached row, shape (rows, vocabulary)."""


def agrees(forward: Passes) -> bool | None:
    """Compare logits on three short rows of random tokens; None if the weights do not tell.

    A model that ignores positions, masks or the cache it is given is off by about the logits'
    spread.
    """
    # 1. Two rows that begin alike, and their beginning, each read alone.
    draw, config = np.random.default_rng(0), forward.config
    length = min(12, getattr(config, "max_position_embeddings", 12) - 1)
    trunk, twig = draw.integers(config.vocab_size, size=(2, length), dtype=np.int32)
    half = length // 2
    rows = {0: trunk, 1: np.concatenate([trunk[:half], twig[half:]]), 2: trunk[:half]}
    plain = torch.cat([_last(forward, pack_rows({0: row}, 0, 0), [0]) for row in rows.values()])
    if not bool(plain.isfinite().all()):
        return None
    # 2. The same in one pack, and with the last token as a step from a cache.
    try:
        packed = _last(forward, pack_rows(rows, MANY, MANY), list(rows))
        stepped = _stepped(forward, trunk, rows[2])
    # A model that does not take what it is given says so in a way of its own.
    except Exception as error:
        return None if ran_out_of_memory(error) else False
    # 3. Their largest difference, as a share of the logits' spread.
    off = torch.cat([packed - plain, stepped - plain[:1]]).abs().max() / plain.std()
    return bool(off <= TOLERANCE.get(forward.model.dtype, 0.2))


def _last(forward: Passes, packs: Sequence[Pack], rows: Sequence[int]) -> Tensor:
    """Logits after the last token of the rows of one pack."""
    (pack,) = packs
    places = torch.tensor([int(pack.paths[row][-1]) for row in rows])
    return forward.logits(Batch.of(packs), torch.zeros_like(places), places).float()


def _stepped(forward: Passes, tokens: Tokens, shorter: Tokens) -> Tensor:
    """Logits after `tokens`, its last one as a step beside a row that is padded on the left."""
    packs = pack_rows({0: tokens[:-1], 1: shorter}, MANY, MANY)
    cache, first = DynamicCache(), torch.zeros(1, dtype=torch.int64)
    forward.logits(Batch.of(packs), first, first, cache)
    rows = unpacked(cache, [(0, packs[0].paths[row]) for row in (0, 1)])
    return forward.step([int(tokens[-1])] * 2, [True] * 2, rows)[:1].float()
