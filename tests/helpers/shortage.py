"""A model that runs out of memory when it is asked for too much at once."""

from __future__ import annotations

import torch

OUT_OF_MEMORY = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "allocator": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory:"
        " you tried to allocate 4096 bytes."
    ),
    "host": MemoryError(),
}


def memory(model, tokens, error):
    """From now on a forward pass of more tokens, those in its cache included, raises the error.

    Returns a list that grows by the tokens of every pass.
    """
    asked = []

    def check(_, args, kwargs):
        rows, length = kwargs["input_ids"].shape
        cache = kwargs.get("past_key_values")
        asked.append(rows * (length + (cache.get_seq_length() if cache else 0)))
        if asked[-1] > tokens:
            raise error

    model.register_forward_pre_hook(check, with_kwargs=True)
    return asked
