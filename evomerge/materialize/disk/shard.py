"""Writes a safetensors file tensor by tensor: the library would hold all of it in memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file.

    Attributes:
        make: computes the tensor, on the CPU, when it is to be written.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_shard(path: Path, entries: Sequence[Entry]) -> None:
    """Write the file whole or not at all, with at most one of its tensors in memory.

    It is written beside its place, brought to the disk and renamed. The bytes are those of
    safetensors' own `save_file` with metadata `format: pt` where all tensors have one dtype.
    """
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(_header(ordered))
        for entry in ordered:
            file.write(entry.make().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync(path.parent)


def is_complete(path: Path, entries: Sequence[Entry]) -> bool:
    """Say whether the file is there with just these tensors; their values are not looked at."""
    try:
        with safe_open(path, framework="pt") as shard:
            return set(shard.keys()) == {entry.name for entry in entries}
    except (OSError, SafetensorError):
        return False


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of files, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _header(entries: Sequence[Entry]) -> bytes:
    """Return the file up to its first tensor: length, JSON, spaces up to a multiple of 8 bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": _CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, start + entry.nbytes],
        }
        start += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
