"""Mapped pages given back: reading a model once need not leave all of it in a process's memory."""

from __future__ import annotations

import ctypes
import math
import mmap
from bisect import bisect
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

_MAPS = Path("/proc/self/maps")


class Releaser:
    """Takes tensors that have been read, and drops the pages of those that are mapped files.

    The kernel reads such pages again, from its cache mostly, when they are needed after all.
    Tensors in memory of their own are left alone, and so is everything where there is no
    `/proc/self/maps`.
    """

    def __init__(self, limit: int = 64 << 20) -> None:
        """`limit`: bytes that may be waiting, since each release looks through all mappings."""
        self._limit = limit
        self._waiting: list[Tensor] = []
        self._size = 0

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that will not be read again soon."""
        for tensor in tensors:
            self._waiting.append(tensor)
            self._size += tensor.nbytes
        if self._size > self._limit:
            self.release()

    def release(self) -> None:
        """Drop the pages of all tensors added so far."""
        if self._waiting and _MAPS.is_file() and hasattr(mmap, "MADV_DONTNEED"):
            # A page of memory that is no file's would be zeroed; the tensors are alive until the
            # end, so that what was a file's mapping when the list was read still is one.
            mapped = list(_file_mappings())  # in rising order
            for tensor in self._waiting:
                start, stop = _pages(tensor)
                place = bisect(mapped, (start, math.inf)) - 1
                if start < stop and place >= 0 and stop <= mapped[place][1]:
                    _libc().madvise(
                        ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED
                    )
        self._waiting, self._size = [], 0


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _pages(tensor: Tensor) -> tuple[int, int]:
    """The whole pages inside a tensor's storage from its first entry on, as addresses."""
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        return 0, 0
    start, size = tensor.data_ptr(), mmap.PAGESIZE
    return -(-start // size) * size, (start + tensor.nbytes) // size * size


def _file_mappings() -> Iterator[tuple[int, int]]:
    """Address ranges that are mappings of files."""
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            low, high = addresses.split("-")
            yield int(low, 16), int(high, 16)
