"""Measure this machine: memory that is free, memory that a process takes, and its speed."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

_STATUS, _PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
_BEYOND_CACHES = 1 << 26
"""Bytes that come from memory and not from a cache, since each is read once in turn."""
_ROWS = 512
"""From here on the seconds of a matrix product grow with its rows."""
_SECONDS = 0.2


@dataclass(frozen=True)
class Machine:
    """Memory that a machine has free.

    Attributes:
        memory: bytes that new processes can have, within the limits of a container.
        gpus: free bytes of each GPU.
    """

    memory: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Memory of this process, in bytes.

    Attributes:
        own: memory of its own.
        mapped: mapped files and shared memory.
        peak: the most that both together came to.
    """

    own: int
    mapped: int
    peak: int


def this_machine() -> Machine:
    """Measure what is free now."""
    from evomerge.common.accelerator import accelerators

    free = min([psutil.virtual_memory().available, *_left_in_groups()])
    return Machine(free, tuple(gpu.memory()[0] for gpu in accelerators()))


def usage() -> Usage:
    """Read this process's memory; where there is no `/proc`, all counts as its own."""
    if not _STATUS.is_file():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Usage(psutil.Process().memory_info().rss, 0, peak)
    lines = (line.split() for line in _STATUS.read_text("utf-8").splitlines())
    found = {words[0]: 1024 * int(words[1]) for words in lines if words[-1:] == ["kB"]}
    return Usage(found["RssAnon:"], found["RssFile:"] + found["RssShmem:"], found["VmHWM:"])


def forget_peak() -> None:
    """Let the peak begin at what the process has now, where the system lets us."""
    with suppress(OSError):
        _PEAK.write_text("5", "ascii")


class MemoryMeter:
    """Meters what is taken of a device's memory from here on; on the CPU, this process's own."""

    def __init__(self, device: str) -> None:
        import torch

        from evomerge.common.accelerator import CPU, Accelerator

        self._gpu = None if device == CPU else Accelerator(torch.device(device))
        if self._gpu:
            self._gpu.forget_peak()
        forget_peak()
        self._before = self._now()

    def _now(self) -> int:
        return self._gpu.allocated() if self._gpu else usage().own

    def most(self) -> int:
        """Bytes at the peak."""
        found = usage()
        peak = self._gpu.peak() if self._gpu else found.peak - found.mapped
        return max(0, peak - self._before)

    def left(self) -> int:
        """Bytes that are still taken."""
        return max(0, self._now() - self._before)


class Rates:
    """Speeds of one device with this process's threads, each measured when first asked for.

    Args:
        matrix: [inner, columns] of the products that are timed, as a model's weights are.
    """

    def __init__(self, device: str, dtype: torch.dtype, matrix: tuple[int, int]) -> None:
        self._device, self._dtype, self._matrix = device, dtype, matrix
        self._measured = cache(self._multiplications)

    def multiplications(self, rows: int) -> float:
        """Multiplications and additions a second, pairs, of [rows, inner] @ [inner, columns].

        Weights come from memory, as in a model whose layers take turns, so that few rows have the
        rate at which weights are read.
        """
        return self._measured(1 << max(0, min(rows, _ROWS).bit_length() - 1))

    @cached_property
    def copied(self) -> float:
        """Bytes a second that are read or written when a large tensor is copied."""
        import torch

        here = torch.ones(_BEYOND_CACHES // 4, device=self._device)
        there = torch.empty_like(here)
        return 2 * _BEYOND_CACHES / best_of(lambda: there.copy_(here), self._device)

    @cached_property
    def call(self) -> float:
        """Seconds of an operation on next to nothing: what calling it takes."""
        import torch

        small, count = torch.ones(1, 8, device=self._device, dtype=self._dtype), 1000

        def call_all() -> None:
            for _ in range(count):
                small + small

        with torch.inference_mode():
            return best_of(call_all, self._device) / count

    def _multiplications(self, rows: int) -> float:
        import torch

        inner, columns = self._matrix
        nbytes = inner * columns * self._dtype.itemsize
        matrices = max(1, _BEYOND_CACHES // nbytes)
        shape = (matrices, columns, inner)
        weights = torch.full(shape, 0.01, dtype=self._dtype, device=self._device)
        vectors = torch.ones(rows, inner, dtype=self._dtype, device=self._device)

        def multiply_all() -> None:
            for weight in weights:
                vectors @ weight.t()

        return rows * inner * columns * matrices / best_of(multiply_all, self._device)


def best_of(work: Callable[[], object], device: str, seconds: float = _SECONDS) -> float:
    """Time work, in seconds: the shortest of several calls, after one that does not count.

    Args:
        seconds: it is called until the calls took so long together, three times at least.
    """
    from evomerge.common.accelerator import synchronize

    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _left_in_groups() -> Iterator[int]:
    """Bytes that control groups leave: the limit, less what is used and cannot be dropped."""
    for limit, used, stat in _GROUPS:
        with suppress(OSError, ValueError, KeyError):
            lines = (line.split() for line in Path(stat).read_text("ascii").splitlines())
            droppable = {words[0]: int(words[1]) for words in lines}["inactive_file"]
            yield int(Path(limit).read_text("ascii")) - int(Path(used).read_text()) + droppable


def free_disk(folder: Path) -> int:
    """Free bytes of the disk where a folder is, or will be."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize
