"""The plan of a GPU's memory: where the sources lie, and how a model is spread over several GPUs.

Where a model is larger than one GPU, accelerate puts whole layers on one after another. Its hooks
move a layer's input to the layer, so that a layer stays there wherever a path puts it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from transformers import PretrainedConfig, PreTrainedModel

from evomerge.common.errors import InputError
from evomerge.materialize.feed import AHEAD, CopyStream, DeviceCache, Prefetched
from evomerge.methods import Method
from evomerge.models.layout import Layout, TensorSpec
from evomerge.models.source import Source

Device = int | str
SourcePlacement = Literal["cached", "prefetched", "too large"]
"""Sources on the GPU, or copied there for every candidate; or it has no room even without them."""

TOKENS = 2048
"""Length of the requests for a batch of which room is kept; lm-eval's own limit by default."""
ANSWER = 16
"""Positions of each request whose logits are held at a time, twice in float32."""
STATISTICS = 1 / 16
"""Share of the free memory that statistics of the sources may take."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a worker needs of its GPU.

    Attributes:
        sources: base and experts, as stored.
        candidate: the resident model, in the dtype of scoring.
        scoring: keys and values, activations and logits of one batch.
        step: the largest tensor of all sources, as stored.
        work: copies of them in float32, and the result: those of one merge at a time, as many as
            the method holds.
    """

    sources: int
    candidate: int
    scoring: int
    step: int
    work: int

    @property
    def least(self) -> int:
        """Bytes with the sources copied step by step."""
        return self.candidate + self.scoring + (AHEAD + 2) * self.step + self.work

    @property
    def all(self) -> int:
        """Bytes with the sources on the GPU."""
        return self.sources + self.candidate + self.scoring + self.work


@dataclass(frozen=True)
class GpuMemoryPlan:
    """Where a worker on a GPU keeps the sources: decided by sizes and free memory alone.

    Attributes:
        free: bytes that the worker has of its GPU.
        pinnable: bytes of the host's memory that it may pin.
    """

    needs: Needs
    free: int
    pinnable: int

    @property
    def statistics(self) -> int:
        """Bytes of the GPU that statistics of the sources may take."""
        return int(self.free * STATISTICS)

    def check(self) -> None:
        """Refuse a GPU on which no candidate can be made, whatever the batches.

        Raises:
            InputError: the model, and one tensor of every source, need more than is free.
        """
        least = self.needs.candidate + self.needs.step
        if least > self.free:
            raise InputError(
                f"workers: a candidate needs {_gb(least)} of its GPU before anything is scored, "
                f"and {_gb(self.free)} are free; give each worker more GPUs (kind: ray, "
                "gpus_per_worker: 2), a narrower dtype.compute, or a larger GPU"
            )

    @property
    def placement(self) -> SourcePlacement:
        """Where the sources lie, in what statistics leave of the free memory."""
        room = self.free - self.statistics
        if self.needs.all <= room:
            return "cached"
        return "prefetched" if self.needs.least <= room else "too large"

    def feed(self, sources: Mapping[str, Source], stream: CopyStream) -> DeviceCache | Prefetched:
        """Build the feed that keeps the sources so; `stream` copies them to its device."""
        if self.placement == "cached":
            return DeviceCache(sources, stream.device)
        return Prefetched(sources, stream, self.pinnable)

    def __str__(self) -> str:
        """One line for `evomerge check`."""
        if self.placement == "cached":
            return f"on the GPU: {_gb(self.needs.all)} of {_gb(self.free)} free"
        prefetched = (
            f"streamed to the GPU from pinned memory: there they would need "
            f"{_gb(self.needs.all)}, and {_gb(self.free)} are free"
        )
        if self.placement == "prefetched":
            return prefetched
        return (
            f"{prefetched}; even without them one candidate and a batch of long requests would "
            f"need {_gb(self.needs.least)}: lower fitness.batch_size, or expect failures"
        )


def needs_of(
    sources: Mapping[str, Source],
    layout: Layout,
    compute: torch.dtype,
    batch_size: int,
    methods: Sequence[Method] = (),
) -> Needs:
    """Return what these models need, merged by any of these methods.

    Args:
        batch_size: requests that are scored at a time.
    """
    held = [(1, 0), *((method.copies, method.squares) for method in methods)]
    entries = {spec.name: math.prod(spec.shape) for spec in layout.tensors}
    stored = [
        {name: n * source.dtype(name).itemsize for name, n in entries.items()}
        for source in sources.values()
    ]
    base = next(iter(sources.values()))
    return Needs(
        sources=sum(sum(one.values()) for one in stored),
        candidate=sum(entries.values()) * compute.itemsize,
        scoring=batch_size * _request_bytes(base.config, layout.vocab_size, compute),
        step=max(sum(one[name] for one in stored) for name in entries),
        work=max(_work(spec, len(stored), method) for spec in layout.tensors for method in held),
    )


def _work(spec: TensorSpec, sources: int, held: tuple[int, int]) -> int:
    """Bytes in float32 of a tensor's result, and of what is held for each source."""
    columns = spec.shape[-1] if len(spec.shape) > 1 else 0
    copies, squares = held
    return 4 * (math.prod(spec.shape) * (copies * sources + 1) + squares * sources * columns**2)


def _request_bytes(config: PretrainedConfig, vocabulary: int, compute: torch.dtype) -> int:
    """Keys and values of a request in all layers, what one layer computes, and logits."""
    text = config.get_text_config(decoder=True)
    hidden, heads = text.hidden_size, getattr(text, "num_attention_heads", 1)
    of_head = getattr(text, "head_dim", None) or hidden // heads
    cached = 2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads)
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    widest = max(inner) if isinstance(inner, list) else inner
    per_token = cached * of_head + 4 * hidden + 3 * widest
    return TOKENS * per_token * compute.itemsize + 2 * ANSWER * vocabulary * 4


def device_map(
    model: PreTrainedModel, memory: Mapping[Device, int] | None = None
) -> dict[str, Device]:
    """Return the device of each module: about as much on each GPU, no layer on two.

    Args:
        model: with its weights tied; these may be on any device.
        memory: bytes by device; None: what is free on all GPUs that the process sees.

    Raises:
        InputError: the GPUs have too little memory.
    """
    whole = sorted(model._no_split_modules or [])
    given = None if memory is None else dict(memory)
    room = get_balanced_memory(model, max_memory=given, no_split_module_classes=whole)
    found = infer_auto_device_map(model, max_memory=room, no_split_module_classes=whole)
    if {"cpu", "disk"} & set(map(str, found.values())):
        gpus = sum(isinstance(device, int) for device in room)
        raise InputError(
            f"workers.gpus_per_worker: the model does not fit on the {gpus} GPUs of a worker "
            "beside what a merge needs; give it more"
        )
    return found


def spread(model: PreTrainedModel, devices: Mapping[str, Device]) -> PreTrainedModel:
    """Move a model's modules to their devices, and let activations follow."""
    return dispatch_model(
        model,
        dict(devices),
        skip_keys=model._skip_keys_device_placement,
        force_hooks=True,
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
