"""Give mapped pages back to the kernel, so that reading a model once does not keep it in memory."""

from __future__ import annotations

import ctypes
import math
import mmap
from bisect import bisect
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import RLock

from torch import Tensor

_MAPS = Path("/proc/self/maps")


class PageReleaser:
    """Drops the pages of tensors that have been read, where they are mapped files.

    The kernel reads such pages again, from its cache mostly, when they are needed after all.
    Tensors in memory of their own are not touched; without `/proc/self/maps` nothing is. Several
    threads may use one.
    """

    def __init__(self, limit: int = 64 << 20) -> None:
        """Set `limit`, the bytes that wait before a release, which looks through all mappings."""
        self._limit = limit
        self._waiting: list[Tensor] = []
        self._size = 0
        self._lock = RLock()

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors that will not be read again soon; over the limit, all are released."""
        with self._lock:
            for tensor in tensors:
                self._waiting.append(tensor)
                self._size += tensor.nbytes
            if self._size > self._limit:
                self.release()

    def release(self) -> None:
        """Drop the pages of all tensors added so far."""
        with self._lock:
            waiting, self._waiting, self._size = self._waiting, [], 0
        if waiting and _MAPS.is_file() and hasattr(mmap, "MADV_DONTNEED"):
            # A page of memory that is no file's would be zeroed; the tensors are alive until the
            # end, so that what was a file's mapping when the list was read still is one.
            mapped = list(_file_mappings())  # in rising order
            for tensor in waiting:
                start, stop = _pages(tensor)
                place = bisect(mapped, (start, math.inf)) - 1
                if start < stop and place >= 0 and stop <= mapped[place][1]:
                    ctypes.CDLL(None).madvise(
                        ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED
                    )


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
