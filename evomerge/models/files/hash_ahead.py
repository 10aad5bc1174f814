"""Hash models' weights in a process of its own while this one imports torch, and only once.

A tensor's digest needs neither torch nor the model's layout. Importing torch keeps one core busy
and Python's lock taken for a second or more; meanwhile this file, run as a program, hashes some
gigabytes. And digests are remembered as long as the files keep their sizes, times and inodes.

Nothing but the standard library is imported at the top: the program starts in 20 ms.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

LARGE = 64 << 20
"""Bytes of weights from which a process is started: fewer are hashed sooner than it starts."""
_KIND = "digests"
_DTYPES = {
    "F64": ("torch.float64", 8),
    "F32": ("torch.float32", 4),
    "F16": ("torch.float16", 2),
    "BF16": ("torch.bfloat16", 2),
}
"""Code in safetensors → torch's name, and bytes; tensors of other dtypes are not merged."""
_PIECE = 16 << 20
"""Bytes that are hashed at a time, and whose pages are let go of then."""
_NICE = 10
_SETTLED = 2.0
"""Seconds after its last change from which a file's times tell it from a later version."""

States = list[list[Any]]
"""Of each file its name, size in bytes, times of the last change in ns, and inode."""

_AHEAD: dict[Path, tuple[States, _Program]] = {}


@contextmanager
def hashing_ahead(folders: Iterable[Path]) -> Iterator[None]:
    """Hash the safetensors of folders meanwhile, if they are large and their digests not known."""
    begun: dict[Path, States] = {}
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        files = states(folder)
        size = sum(state[1] for state in files if state[0].endswith(".safetensors"))
        if size >= LARGE and folder not in _AHEAD and _kept(folder, files) is None:
            begun[folder] = files
    program = None
    with suppress(OSError):
        program = _Program(list(begun)) if begun else None
    if program is not None:
        _AHEAD.update({folder: (files, program) for folder, files in begun.items()})
    try:
        yield
    finally:
        if program is not None:
            for folder in begun:
                del _AHEAD[folder]
            program.stop()


def hashed_ahead(folder: Path) -> Callable[[], Mapping[str, str]] | None:
    """Return what waits for the digests of a folder that is being hashed; None where none is.

    Its result maps the name by which a tensor is stored to its SHA-256, and is empty if the files
    have changed since, or the process failed.
    """
    files, program = _AHEAD.get(folder.resolve(), ([], None))
    if program is None or states(folder) != files:
        return None
    return partial(program.digests, folder.resolve())


def recall_digests(folder: Path, model: str) -> Mapping[str, str] | None:
    """Return the digests of a folder's tensors that are on record: canonical name → SHA-256.

    Args:
        model: a digest of what decides the canonical names.
    """
    found = _kept(folder, states(folder))
    return found["tensors"] if found is not None and found.get("model") == model else None


def remember_digests(
    folder: Path, model: str, files: States, began: float, digests: Mapping[str, str]
) -> None:
    """Keep the digests of tensors, all finite, unless files have changed or may yet unseen.

    Args:
        files: their states before anything was read.
        began: the time of these, as `time.time()` gives it.
    """
    changed = max((max(state[2:4]) for state in files), default=0) / 1e9
    if states(folder) == files and changed + _SETTLED < began:
        from evomerge.common.remembered import remember

        found = {"files": files, "model": model, "tensors": dict(digests)}
        remember(_KIND, _place(folder), found)


def states(folder: Path) -> States:
    """Return the state of every file that weights or config may be in."""
    found: States = []
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if path.suffix in (".safetensors", ".bin", ".json"):
                one = path.stat()
                found.append([path.name, one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino])
    return found


def _kept(folder: Path, files: States) -> Mapping[str, Any] | None:
    from evomerge.common.remembered import recall

    found = recall(_KIND, _place(folder))
    fits = isinstance(found, dict) and bool(files) and found.get("files") == files
    return found if fits and isinstance(found.get("tensors"), dict) else None


def _place(folder: Path) -> list[str]:
    return [platform.node(), str(folder.resolve())]


class _Program:
    """This file, run as a program on some folders."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *map(str, folders)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._lock = threading.Lock()
        self._found: Mapping[str, Mapping[str, str]] | None = None

    def digests(self, folder: Path) -> Mapping[str, str]:
        """Wait for its result on a folder; empty where it failed."""
        with self._lock:
            if self._found is None:
                said, _ = self._process.communicate()
                try:
                    self._found = dict(json.loads(said))
                except ValueError:  # whatever it was, it is met again without haste
                    self._found = {}
            return self._found.get(str(folder), {})

    def stop(self) -> None:
        """End it, whether it is done or not."""
        self._process.kill()
        self.digests(Path())  # nobody waits for the rest


def _digests(folders: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Hash every tensor of some folders: folder → name → SHA-256; nothing of one that is damaged.

    There are as many threads as cores. All but one step back while others want the core: the
    process that imports meanwhile has one thread alone, and takes longer.
    """
    found: dict[str, dict[str, str]] = {}
    tensors = []
    for folder in folders:
        with suppress(OSError, ValueError, LookupError):
            tensors += [(str(folder), *one) for one in _tensors(folder)]
    left, lock = iter(tensors), threading.Lock()

    def work(niceness: int) -> None:
        if niceness:
            with suppress(OSError, AttributeError):  # a thread's own on Linux alone
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        while True:
            with lock:
                one = next(left, None)
            if one is None:
                return
            folder, name, mapped, start, stop, header = one
            digest = hashlib.sha256(header)
            for begin in range(start, stop, _PIECE):
                end = min(begin + _PIECE, stop)
                with memoryview(mapped) as whole, whole[begin:end] as own:
                    digest.update(own)
                if hasattr(mmap, "MADV_DONTNEED"):  # keep no pages of what is read
                    first = begin // mmap.PAGESIZE * mmap.PAGESIZE
                    mapped.madvise(mmap.MADV_DONTNEED, first, end - first)
            found.setdefault(folder, {})[name] = digest.hexdigest()

    each = (_NICE if number else 0 for number in range(_cores()))
    threads = [threading.Thread(target=work, args=(niceness,)) for niceness in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _tensors(folder: Path) -> Iterator[tuple[str, mmap.mmap, int, int, bytes]]:
    """Yield each tensor's name, its file's mapping, its first byte and the one after its last, and
    what is hashed before it.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    files = {single.name: None}
    if not single.is_file():
        files = dict.fromkeys(json.loads(index.read_bytes())["weight_map"].values())
    for name in files:
        with (folder / Path(name).name).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8 : 8 + length])
        for tensor, said in header.items():
            if said.get("dtype") in _DTYPES:
                dtype, size = _DTYPES[said["dtype"]]
                start, stop = (8 + length + offset for offset in said["data_offsets"])
                if stop - start == size * math.prod(said["shape"]) and stop <= len(mapped):
                    yield tensor, mapped, start, stop, f"{dtype} {said['shape']}\n".encode()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    print(json.dumps(_digests([Path(folder) for folder in sys.argv[1:]])))
