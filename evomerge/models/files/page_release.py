"""Give mapped pages back to the kernel, so that reading a model once does not keep it in memory."""

from __future__ import annotations

import ctypes
import math
import mmap
from bisect import bisect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from torch import Tensor

KEPT = 256 << 20
"""Bytes of mapped pages that are kept while models are read once."""
_EVERY = 0.02
"""Seconds from one look at them to the next; at 10 GB a second 200 MB are read meanwhile."""
_MAPS, _SIZES = Path("/proc/self/maps"), Path("/proc/self/statm")


@contextmanager
def reading_once(tensors: Iterable[Tensor], kept: int = KEPT) -> Iterator[None]:
    """Let go of the pages of tensors meanwhile, and at the end, where they are mapped files.

    A thread looks at how many pages of files this process has, and drops those of all the tensors
    when they are more than `kept` bytes; so the largest tensor may be larger than that, whoever
    reads it and in which order. The kernel reads dropped pages again, from its cache mostly, when
    they are needed after all. Without `/proc` nothing is dropped.
    """
    held = list(tensors)  # alive meanwhile, so that what is a file's mapping now still is one then
    ranges, done = list(_mapped(held)), Event()
    if not ranges:
        yield
        return
    most = _file_pages() + kept

    def watch() -> None:
        while not done.wait(_EVERY):
            if _file_pages() > most:
                _drop(ranges)

    watcher = Thread(target=watch, name="page release", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        _drop(ranges)


def release(tensors: Iterable[Tensor]) -> None:
    """Drop the pages of tensors, where they are mapped files; others are not touched."""
    held = list(tensors)
    _drop(_mapped(held))


def _drop(ranges: Iterable[tuple[int, int]]) -> None:
    for start, stop in ranges:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED
        )


def _mapped(tensors: Iterable[Tensor]) -> Iterator[tuple[int, int]]:
    """Yield the address ranges of the whole pages of tensors that lie in mappings of files.

    A page of memory that is no file's would be zeroed.
    """
    if not (_MAPS.is_file() and hasattr(mmap, "MADV_DONTNEED")):
        return
    mapped = list(_file_mappings())  # in rising order
    for tensor in tensors:
        start, stop = _pages(tensor)
        place = bisect(mapped, (start, math.inf)) - 1
        if start < stop and place >= 0 and stop <= mapped[place][1]:
            yield start, stop


def _file_pages() -> int:
    """Return the bytes of this process's resident pages that are files'."""
    return int(_SIZES.read_text(encoding="ascii").split()[2]) * mmap.PAGESIZE


def _pages(tensor: Tensor) -> tuple[int, int]:
    """Return the address range of the whole pages inside a tensor's storage."""
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        return 0, 0
    start, size = tensor.data_ptr(), mmap.PAGESIZE
    return -(-start // size) * size, (start + tensor.nbytes) // size * size


def _file_mappings() -> Iterator[tuple[int, int]]:
    """Yield the address ranges that are mappings of files."""
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            low, high = addresses.split("-")
            yield int(low, 16), int(high, 16)
