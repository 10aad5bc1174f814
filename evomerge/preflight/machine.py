"""What this machine has, and what this process takes of it."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_STATUS, _PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


@dataclass(frozen=True)
class Machine:
    """Attributes:
    memory: bytes that new processes can have, within the limits of a container.
    gpus: free bytes of each.
    """

    memory: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Bytes of this process: its own, mapped files, and the peak of both together."""

    own: int
    mapped: int
    peak: int


def this_machine() -> Machine:
    """What is free now."""
    import torch

    free = min([psutil.virtual_memory().available, *_left_in_groups()])
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Machine(free, tuple(torch.cuda.mem_get_info(index)[0] for index in range(count)))


def usage() -> Usage:
    """Where there is no `/proc`, all is taken to be the process's own."""
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


class Meter:
    """What is taken of a device's memory from here on: on the CPU of the process's own."""

    def __init__(self, device: str) -> None:
        import torch

        self._cuda = torch.cuda if device == "cuda" else None
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
        forget_peak()
        self._before = self._now()

    def _now(self) -> int:
        return self._cuda.memory_allocated() if self._cuda else usage().own

    def most(self) -> int:
        """Bytes at the peak."""
        found = usage()
        peak = self._cuda.max_memory_allocated() if self._cuda else found.peak - found.mapped
        return max(0, peak - self._before)

    def left(self) -> int:
        """Bytes that are still taken."""
        return max(0, self._now() - self._before)


def _left_in_groups() -> Iterator[int]:
    """What control groups leave: the limit, less what is used and cannot be dropped."""
    for limit, used, stat in _GROUPS:
        with suppress(OSError, ValueError, KeyError):
            lines = (line.split() for line in Path(stat).read_text("ascii").splitlines())
            droppable = {words[0]: int(words[1]) for words in lines}["inactive_file"]
            yield int(Path(limit).read_text("ascii")) - int(Path(used).read_text()) + droppable


def free_disk(folder: Path) -> int:
    """Free bytes where a folder is, or will be."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize
