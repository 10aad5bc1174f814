"""Where a worker on a GPU keeps the sources: decided by sizes and free memory alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PretrainedConfig

from evomerge.materialize.feed import AHEAD, CopyStream, DeviceCache, Feed, Prefetched
from evomerge.models.layout import Layout
from evomerge.models.source import Source

SourcePlacement = Literal["held", "streamed", "too large"]
"""Sources on the GPU, or brought there for every candidate; or it lacks room without them, too."""

TOKENS = 2048
"""Length of the requests for a batch of which room is kept; lm-eval's own limit by default."""
ANSWER = 16
"""Positions of each whose logits are held at a time, twice in float32."""
STATISTICS = 1 / 16
"""Share of the free memory that statistics of the sources may take."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a worker needs of its GPU.

    Attributes:
        sources: base and experts, as stored.
        candidate: the resident model, in the dtype of scoring.
        scoring: keys and values, activations and logits of one batch.
        step: the largest merge of one tensor: its sources, and copies of them in float32.
    """

    sources: int
    candidate: int
    scoring: int
    step: int

    @property
    def least(self) -> int:
        """Without the sources, which are then brought step by step."""
        return self.candidate + self.scoring + (AHEAD + 2) * self.step

    @property
    def all(self) -> int:
        """With the sources."""
        return self.sources + self.candidate + self.scoring + self.step


def residence(needs: Needs, free: int) -> SourcePlacement:
    """What fits into `free` bytes, of which statistics have their share."""
    room = free - statistics_limit(free)
    if needs.all <= room:
        return "held"
    return "streamed" if needs.least <= room else "too large"


def statistics_limit(free: int) -> int:
    """Bytes of the GPU that statistics may take."""
    return int(free * STATISTICS)


def pinned_room(available: int, workers: int) -> int:
    """Bytes of the host's memory that one of so many workers may pin: half of it, shared out."""
    return available // 2 // workers


def needs_of(
    sources: Mapping[str, Source], layout: Layout, compute: torch.dtype, batch_size: int
) -> Needs:
    """What these models need, scored in batches of so many requests."""
    entries = {spec.name: math.prod(spec.shape) for spec in layout.tensors}
    stored = [
        {name: n * source.dtype(name).itemsize for name, n in entries.items()}
        for source in sources.values()
    ]
    steps = [
        sum(one[name] for one in stored) + 4 * n * (len(stored) + 1) for name, n in entries.items()
    ]
    base = next(iter(sources.values()))
    return Needs(
        sources=sum(sum(one.values()) for one in stored),
        candidate=sum(entries.values()) * compute.itemsize,
        scoring=batch_size * _per_request(base.config, layout.vocab_size, compute),
        step=max(steps),
    )


def _per_request(config: PretrainedConfig, vocabulary: int, compute: torch.dtype) -> int:
    """Bytes for one: its keys and values in all layers, what one layer computes, and logits."""
    text = config.get_text_config(decoder=True)
    hidden, heads = text.hidden_size, getattr(text, "num_attention_heads", 1)
    of_head = getattr(text, "head_dim", None) or hidden // heads
    cached = 2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads)
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    widest = max(inner) if isinstance(inner, list) else inner
    per_token = cached * of_head + 4 * hidden + 3 * widest
    return TOKENS * per_token * compute.itemsize + 2 * ANSWER * vocabulary * 4


def feed_of(
    chosen: SourcePlacement, sources: Mapping[str, Source], lane: CopyStream, room: int
) -> Feed:
    """The feed that keeps the sources as chosen; `room` bytes of the host may be pinned."""
    if chosen == "held":
        return DeviceCache(sources, lane.device)
    return Prefetched(sources, lane, room)
