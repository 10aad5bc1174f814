"""Statistics of the sources on disk: computed once per campaign, mapped by every worker.

One safetensors file per statistic, tensor and expert (or experts), named by a digest of all that it
depends on: the sources' digests, the tensor, the arithmetic, and the code that computes it. A file
under the right name is therefore never out of date, only absent or damaged, and then it is computed
again. Files appear whole, by renaming, so that workers need no lock: at worst two compute the same.

The room that is taken, for a tensor of n entries: what trims need (histograms, `variances`) at most
some 100 kB for each expert, 60 MB for three experts of 7 B parameters; Grams and energies next to
nothing; DELLA's `ranks` 2n bytes for each expert; merged task vectors of the SVD family 4n bytes.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import shutil
import sys
import typing
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from evomerge.common.digest import content_digest
from evomerge.common.version import __version__
from evomerge.methods import core
from evomerge.methods.core.view import Statistic
from evomerge.models.canonical_names import as_bytes
from evomerge.recipe import BASE

RESERVE = 2 << 30
"""Bytes of a disk that are left free: the study needs them more."""

_LOGGER = logging.getLogger(__name__)
_META = "statistic"


class Store:
    """A folder of statistics of one set of sources.

    Where a statistic cannot be kept (a disk that is full or read-only, a function without a name of
    its own, a result that is not made of dataclasses, sequences, tensors, arrays and numbers), it
    is not: the caller has it in memory all the same.
    """

    def __init__(self, folder: Path, digests: Mapping[str, str]) -> None:
        """`digests`: source name → digest, the base among them; `calibration:NAME` → that of the
        source's calibration file.
        """
        self.folder = folder
        self._digests = digests
        self._warned = False

    def place(
        self,
        function: Callable[..., Statistic],
        tensor: str,
        experts: Sequence[str],
        dtype: object,
        calibrated: bool = False,
        values: Sequence[object] = (),
    ) -> Path | None:
        """The file of one statistic; None where the function or a source has no name for good.

        Args:
            function: that computes it.
            tensor: its name.
            experts: whose tensor it is of.
            dtype: of the arithmetic.
            calibrated: it is of the experts' calibration files, too.
            values: of the parameters that it is for, as JSON data.
        """
        digests = self.digests_of(experts)
        if "<" in function.__qualname__ or digests is None:
            return None
        parts: list[object] = [_version(function), tensor, str(dtype), digests]
        if calibrated:
            files = [self._digests.get(f"calibration:{name}") for name in experts]
            if None in files:
                return None
            parts.append(files)
        if values:
            parts.append(values)
        return self.folder / function.__name__ / f"{content_digest(parts)}.safetensors"

    def digests_of(self, names: Sequence[str]) -> list[str] | None:
        """The digests of the base and of sources; None where one has none."""
        wanted = (BASE, *names)
        known = all(name in self._digests for name in wanted)
        return [self._digests[name] for name in wanted] if known else None

    def find(self, path: Path, hint: Any, device: torch.device | str = "cpu") -> Statistic | None:
        """What was kept; None if there is nothing, or something damaged.

        On the CPU all is mapped; elsewhere tensors are copies, and arrays mapped.

        Args:
            path: of `place`.
            hint: the type of the statistic.
        """
        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads(file.metadata()[_META])
                leaves = [file.get_tensor(str(i)) for i in range(len(file.keys()))]
            if meta["checksum"] != _checksum(leaves):
                raise ValueError("another checksum")
            return typing.cast(Statistic, _decoded(meta["value"], hint, leaves, device))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
            _LOGGER.warning("%s is damaged (%s) and computed again", path, error)
            return None

    def keep(self, path: Path, value: Statistic) -> bool:
        """Write a statistic, whole or not at all; whether that was possible."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            leaves: list[Tensor] = []
            skeleton = _encoded(value, leaves)
            meta = json.dumps({"value": skeleton, "checksum": _checksum(leaves)})
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < value.nbytes + RESERVE:
                raise OSError(f"less than {RESERVE >> 30} GB of the disk would be left")
            tensors = {str(i): leaf for i, leaf in enumerate(leaves)}
            save_file(tensors, partial, metadata={_META: meta})
            os.replace(partial, path)
        except (OSError, SafetensorError, RuntimeError, TypeError) as error:
            partial.unlink(missing_ok=True)
            if not self._warned:
                _LOGGER.warning("%s: statistics stay in memory (%s)", self.folder, error)
            self._warned = True
            return False
        return True


def tidy(folder: Path) -> None:
    """Remove what processes left in a store that were killed while writing."""
    for partial in folder.glob("*/*.partial"):
        partial.unlink(missing_ok=True)


def type_of(function: Callable[..., Statistic]) -> Any:
    """What a statistic's function says that it returns; None where that cannot be had."""
    try:
        return typing.get_type_hints(function).get("return")
    except (NameError, TypeError):
        return None


@cache
def _version(function: Callable[..., Statistic]) -> str:
    """Digest a function's name, its file and the maths beneath: other code is another statistic."""
    module = sys.modules[function.__module__]
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        source = ""
    name = [__version__, function.__module__, function.__qualname__]
    return content_digest([*name, source, _source_of_core()])


@cache
def _source_of_core() -> Sequence[str]:
    """The files of the maths that methods share."""
    files = sorted(Path(core.__path__[0]).glob("*.py"))
    return [path.read_text(encoding="utf-8") for path in files]


def _encoded(value: Any, leaves: list[Tensor]) -> Any:
    """A nest as JSON in which the arrays are numbered; appends them to `leaves`.

    Raises:
        TypeError: it holds something else.
    """
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        leaves.append(torch.as_tensor(value).detach().cpu().contiguous())
        return {kind: len(leaves) - 1}
    if dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
        return {name: _encoded(getattr(value, name), leaves) for name in _fields(type(value))}
    if isinstance(value, list | tuple):
        return [_encoded(entry, leaves) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a file")


def _decoded(value: Any, hint: Any, leaves: Sequence[Tensor], device: torch.device | str) -> Any:
    """The nest again; `hint` names the classes in it."""
    fields = _fields(hint)
    if fields:
        hints = typing.get_type_hints(hint)
        return hint(**{name: _decoded(value[name], hints[name], leaves, device) for name in fields})
    if isinstance(value, dict):
        [(kind, place)] = value.items()
        return leaves[place].to(device) if kind == "tensor" else leaves[place].numpy()
    if isinstance(value, list):
        inner = (*typing.get_args(hint), Any)[0]
        return [_decoded(entry, inner, leaves, device) for entry in value]
    return value


def _fields(kind: Any) -> Sequence[str]:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.init]
    return getattr(kind, "_fields", ())


def _checksum(leaves: Sequence[Tensor]) -> int:
    checksum = 0
    for leaf in leaves:
        checksum = zlib.crc32(f"{leaf.dtype} {list(leaf.shape)}".encode(), checksum)
        if leaf.numel():
            checksum = zlib.crc32(as_bytes(leaf).numpy().data, checksum)
    return checksum
