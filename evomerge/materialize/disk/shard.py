"""Writes a safetensors file tensor by tensor: the library would hold all of it in memory.

Every tensor's place in the file is known before it is made. So several threads make tensors, each
on one core and each its own, and write them where they belong: no thread waits for another at every
operation, and the bytes are the same on any number of them.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Condition, Event

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
IN_FLIGHT = 1 << 30
"""Bytes of merged tensors that are held at a time."""
_FLUSHED_EVERY = 0.2
"""Seconds."""


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


def write_shard(
    path: Path,
    entries: Sequence[Entry],
    written: Callable[[str, Tensor], None] | None = None,
    together: bool = False,
) -> None:
    """Write the file whole or not at all.

    It is written beside its place, brought to the disk, which begins with the first tensor, and
    renamed. The bytes are those of safetensors' own `save_file` with metadata `format: pt` where
    all tensors have one dtype.

    In memory are as many of its tensors as torch uses threads, and one more, but no more than
    `IN_FLIGHT` bytes of them unless one alone is larger.

    Args:
        written: is called with the name of each tensor, and the tensor; by one of several threads.
        together: all of torch's threads make one tensor after the other, as compiled code, which
            keeps Python's lock, needs it; threads of their own record and write them meanwhile.
    """
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    partial, header = path.with_name(f"{path.name}.partial"), _header(ordered)
    starts = accumulate((entry.nbytes for entry in ordered), initial=len(header))
    threads, room = max(1, torch.get_num_threads()), _Room(IN_FLIGHT)

    with partial.open("wb") as file:
        file.write(header)
        file.flush()

        def make(entry: Entry) -> Tensor:
            room.take(entry.nbytes)
            try:
                with torch.no_grad():
                    return entry.make()
            except BaseException:
                room.give(entry.nbytes)
                raise

        def write(entry: Entry, tensor: Tensor, start: int) -> None:
            try:
                torch.set_num_threads(1)  # of this thread, and of those that are yet to come
                if written is not None:
                    written(entry.name, tensor)
                _write_at(file.fileno(), tensor, start)
            finally:
                room.give(entry.nbytes)

        def make_and_write(entry: Entry, start: int) -> None:
            torch.set_num_threads(1)
            write(entry, make(entry), start)

        with _brought_to_disk(file.fileno()), ThreadPoolExecutor(threads) as pool:
            done: deque[Future[None]] = deque()
            try:
                for entry, start in zip(ordered, starts, strict=False):
                    if together:
                        done.append(pool.submit(write, entry, make(entry), start))
                    else:
                        done.append(pool.submit(make_and_write, entry, start))
                    while together and done and done[0].done():  # a full disk ends it at once
                        done.popleft().result()
                for one in done:  # the first that fails, in the order of the file
                    one.result()
            finally:
                for one in done:
                    one.cancel()
                torch.set_num_threads(threads)
    os.replace(partial, path)
    sync(path.parent)


@contextmanager
def _brought_to_disk(file: int) -> Iterator[None]:
    """Flush an open file to the disk while it is written, and in the end.

    The disk is slower than most merges, and would have nothing to do until they are done.
    """
    written = Event()

    def flush() -> None:
        while not written.wait(_FLUSHED_EVERY):
            os.fsync(file)

    with ThreadPoolExecutor(1) as flusher:
        flushed = flusher.submit(flush)
        try:
            yield
        finally:
            written.set()
        flushed.result()  # what the disk refuses is said once
    os.fsync(file)


class _Room:
    """Bounds the bytes of tensors that are being made, but lets one through, however large."""

    def __init__(self, limit: int) -> None:
        self._limit, self._taken, self._changed = limit, 0, Condition()

    def take(self, nbytes: int) -> None:
        """Take up so many bytes, once there is room for them."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + nbytes <= self._limit)
            self._taken += nbytes

    def give(self, nbytes: int) -> None:
        """Give up so many bytes."""
        with self._changed:
            self._taken -= nbytes
            self._changed.notify_all()


def _write_at(file: int, tensor: Tensor, start: int) -> None:
    """Write a tensor's bytes at a place of an open file."""
    left = tensor.reshape(-1).view(torch.uint8).numpy().data
    while left:
        count = os.pwrite(file, left, start)
        left, start = left[count:], start + count


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
