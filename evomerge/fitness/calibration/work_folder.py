"""The folder of a calibration that is going on: what is done, and what the next step starts from.

Every file appears whole, by renaming, and a step is done once its file is there. So whatever kills
the process, the next one goes on at the step that was not done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from evomerge.common.errors import InputError

RESERVE = 1 << 30
"""Bytes of a disk that are left free."""


class States:
    """Hidden states of texts, or gradients in them, in a mapped file: float32 [tokens, hidden]."""

    def __init__(self, path: Path, lengths: Sequence[int], hidden: int) -> None:
        """Map a file, which is made if there is none; `lengths`: tokens of each text."""
        self._ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        self._lengths = lengths
        size = self._ends[-1] * hidden
        whole = torch.from_file(str(path), shared=True, size=size, dtype=torch.float32)
        self._whole = whole.view(-1, hidden)

    def read(self, text: int) -> Tensor:
        """Copy one text's, [1, tokens, hidden]."""
        return self._of(text).clone()[None]

    def write(self, text: int, values: Tensor) -> None:
        """Keep one text's, given as [1, tokens, hidden]."""
        self._of(text).copy_(values[0])

    def _of(self, text: int) -> Tensor:
        return self._whole[self._ends[text] - self._lengths[text] : self._ends[text]]


class WorkFolder:
    """Parts and states by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        """Say whether states or a part of this name are there."""
        return self._states(name).exists() or self._part(name).exists()

    @contextmanager
    def writing(self, name: str, lengths: Sequence[int], hidden: int) -> Iterator[States]:
        """Yield states to write; they are there once the block is left in order."""
        partial = self._states(name).with_suffix(".partial")
        partial.unlink(missing_ok=True)
        yield States(partial, lengths, hidden)
        os.replace(partial, self._states(name))

    def states(self, name: str, lengths: Sequence[int], hidden: int) -> States:
        """Map states that are there."""
        return States(self._states(name), lengths, hidden)

    def keep(self, name: str, tensors: Mapping[str, Tensor], facts: Any = None) -> None:
        """Write a part, with a small fact that JSON can say."""
        partial = self._part(name).with_suffix(".partial")
        metadata = {"facts": json.dumps(facts)}
        save_file(dict(tensors), partial, metadata=metadata)
        os.replace(partial, self._part(name))

    def part(self, name: str) -> dict[str, Tensor]:
        """Map a part's tensors."""
        with safe_open(self._part(name), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def facts(self, name: str) -> Any:
        """Return the fact beside a part."""
        with safe_open(self._part(name), framework="pt") as file:
            return json.loads(file.metadata()["facts"])

    def drop(self, name: str) -> None:
        """Remove states or a part, if they are there."""
        self._states(name).unlink(missing_ok=True)
        self._part(name).unlink(missing_ok=True)

    def _states(self, name: str) -> Path:
        return self.folder / f"{name}.states"

    def _part(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


@contextmanager
def work_folder(target: Path, key: str, needed: int) -> Iterator[WorkFolder]:
    """Open the folder beside `target` in which it is being made; removed once it is there.

    What an earlier process left is kept if it was made for the same `key`.

    Args:
        key: everything that decides the bytes, as text.
        needed: bytes of disk that it takes.

    Raises:
        InputError: it cannot be written, the disk has not the room, or another process makes it.
    """
    folder = target.with_name(f".{target.name}.calibrating")
    manifest = folder / "key.txt"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock", timeout=0):
            try:
                if not manifest.is_file() or manifest.read_text(encoding="utf-8") != key:
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir()
                    manifest.write_text(key, encoding="utf-8")
                held = sum(path.stat().st_size for path in folder.iterdir())
                free = shutil.disk_usage(folder).free
                if free < needed - held + RESERVE:
                    raise InputError(
                        f"{target}: calibration takes {needed / 1e9:.2g} GB of disk, and "
                        f"{free / 1e9:.2g} GB are free there; ask for fewer or shorter texts "
                        "(samples, tokens), or write elsewhere (--to)"
                    )
                try:
                    yield WorkFolder(folder)
                except InputError:  # what was done is of no use
                    shutil.rmtree(folder)
                    raise
                if target.exists():
                    shutil.rmtree(folder)
            finally:
                Path(f"{folder}.lock").unlink(missing_ok=True)
    except Timeout:
        raise InputError(f"{target}: another process is making it; wait for that one") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{target}: cannot be written ({error})") from None
