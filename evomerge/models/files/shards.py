"""Map the weight files of a model folder: tensors under the names they are stored by."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evomerge.common.data_files import json_data, read_text
from evomerge.common.errors import InputError
from evomerge.models.messages import reason

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
_LFS = b"version https://git-lfs."
ALLOW_PICKLE = (
    "convert them to safetensors or, if you trust them, set models.allow_pickle: true (campaign "
    "file) or add --allow-pickle (evomerge merge)"
)
"""The way out where weights are pickled."""

_LONGEST_NAME = 255
"""The most bytes that a file's name has, on every common file system."""


@dataclass(frozen=True)
class StoredTensor:
    """A memory-mapped tensor and the file that holds it."""

    tensor: Tensor
    file: Path


def read_stored(folder: Path, allow_pickle: bool) -> dict[str, StoredTensor]:
    """Map every weight file of `folder`; no data is read until a tensor is used.

    The files are those transformers reads: `model.safetensors`, else the shards listed by
    `model.safetensors.index.json`, else, if allowed, the same for `pytorch_model.bin`.

    Raises:
        InputError: no weights, or pickled ones that are not allowed; an index or a shard that is
            missing, damaged or at odds with the other. Names the file.
    """
    for file in (SAFETENSORS, PICKLED):
        index = folder / f"{file}.index.json"
        if not (folder / file).is_file() and not index.is_file():
            continue
        if file == PICKLED and not allow_pickle:
            raise InputError(
                f"{folder}: only pickled weights ({file}), which can run code when opened; "
                f"{ALLOW_PICKLE}"
            )
        if (folder / file).is_file():
            return open_weights(folder / file)
        return _open_indexed(index)
    raise InputError(f"{folder}: {_no_weights(folder)}")


def _no_weights(folder: Path) -> str:
    """Say that a folder has no weights that are read, and what it has in their place."""
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if shards:
        more = f" and {len(shards) - 1} more" if len(shards) > 1 else ""
        index = f"{SAFETENSORS}.index.json"
        return (
            f"has {shards[0]}{more}, but neither {SAFETENSORS} nor {index}, which says what is in "
            f"which file; download {index} too, or rename a single file to {SAFETENSORS}"
        )
    if found := sorted(path.name for path in folder.glob("*.gguf")):
        return (
            f"only weights in GGUF ({found[0]}), which are not read; give the model that they were "
            "made of, in safetensors"
        )
    return f"no weights; expected {SAFETENSORS} or {SAFETENSORS}.index.json"


def _open_indexed(index: Path) -> dict[str, StoredTensor]:
    weight_map = _weight_map(index)
    shards = {}
    for file in sorted(set(weight_map.values())):
        path = index.parent / file
        if not path.is_file():
            raise InputError(
                f"{path}: missing, but {index.name} lists it; download the model again"
            )
        shards[file] = open_weights(path)
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise InputError(
                f"{index.parent / file}: {name} is not in it, though {index.name} says so; "
                "shards and index are of different models, download them again"
            )
    return {name: shards[file][name] for name, file in weight_map.items()}


def _weight_map(index: Path) -> Mapping[str, str]:
    """Read tensor name → file name; only plain names, so that nothing outside is opened."""
    data = json_data(read_text(index), str(index))
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict):
        raise InputError(
            f"{index}: not an index with a weight_map of files; download the model again"
        )
    for file in weight_map.values():
        plain = isinstance(file, str) and file == Path(file).name and "\\" not in file
        if not plain or file in ("", "..") or len(file.encode()) > _LONGEST_NAME:
            raise InputError(
                f"{index}: weight_map names {str(file)[:80]!r}; only plain file names inside the "
                "folder are opened"
            )
    return weight_map


def open_weights(file: Path) -> dict[str, StoredTensor]:
    """Map one file of weights: safetensors, or else pickled ones.

    Raises:
        InputError: the file is damaged or holds something else.
    """
    return _open_safetensors(file) if file.suffix == ".safetensors" else _open_pickled(file)


def _open_safetensors(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            # Each tensor is a view that keeps the mapping alive after the handle is closed.
            return {name: StoredTensor(opened.get_tensor(name), file) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        if _is_lfs_pointer(file):
            raise InputError(
                f"{file}: a pointer of Git LFS and not the weights themselves; fetch them with "
                "`git lfs pull` in its folder, or download the model with `hf download`"
            ) from None
        raise InputError(
            f"{file}: truncated or not a safetensors file ({reason(error)}); download it again"
        ) from None


def _is_lfs_pointer(file: Path) -> bool:
    """Say whether a clone left the pointer to a file in the file's place."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(_LFS)) == _LFS
    except OSError:
        return False


def _open_pickled(file: Path) -> dict[str, StoredTensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{file}: cannot be opened as pickled weights ({reason(error)})") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{file}: holds something else than a mapping of names to tensors")
    return {name: StoredTensor(tensor.detach(), file) for name, tensor in state.items()}
