"""Budget the tokens of a forward pass: measured once, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils.memory import should_reduce_batch_size

from evomerge.common.accelerator import CPU, Accelerator

ON_CPU = 4096
"""Tokens of a batch on CPU: enough for full speed, and its tensors still fit a cache."""
FIRST = 4096
"""Tokens of the first batch on a GPU, by which the others are sized."""
MOST = 1 << 18
SHARE = 0.8
"""Share of the free memory that a batch may take."""


class Budget:
    """The tokens of one forward pass, padding included; `tokens` is what worked so far.

    On a GPU the first batch is small and its memory measured; the budget is then the largest power
    of two that keeps to its share of what is free, on every GPU that holds some of the model. Where
    `tokens` is given, nothing is measured.
    """

    def __init__(self, devices: Collection[torch.device], tokens: int | None = None) -> None:
        """Begin with a budget for the model's devices."""
        self._gpus = [Accelerator(device) for device in devices if device.type != CPU]
        self._measures = bool(self._gpus) and tokens is None
        self.tokens = tokens or (FIRST if self._measures else ON_CPU)

    @contextmanager
    def measured(self, tokens: int) -> Iterator[None]:
        """Measure the pass of so many tokens inside the block; the first sizes the others."""
        if not self._measures:
            yield
            return
        held = {}
        for gpu in self._gpus:
            gpu.forget_peak()
            held[gpu] = gpu.allocated()
        yield
        self.tokens = min(self._sized(gpu, tokens, held[gpu]) for gpu in self._gpus)
        self._measures = False

    def _sized(self, gpu: Accelerator, tokens: int, held: int) -> int:
        used, cached = gpu.peak() - held, gpu.reserved() - held
        return sized(tokens, used, gpu.memory()[0] + cached)

    def halve(self, tokens: int) -> None:
        """Halve the budget after a pass of so many tokens ran out of memory."""
        self._measures = False
        self.tokens = max(1, min(self.tokens, tokens) // 2)


def sized(tokens: int, used: int, free: int) -> int:
    """Size a budget, a power of two: a pass of `tokens` took `used` bytes, `free` are free."""
    most = int(SHARE * free * tokens / max(1, used))
    return min(MOST, 1 << max(0, most.bit_length() - 1))


def ran_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception means that there was no memory, on a GPU or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, Exception) and should_reduce_batch_size(error)
