"""Remember what transformers says of a model, so that it need not be imported to merge such again.

The layout of a model, and the names by which its tensors are stored, follow from its `config.json`,
the names and shapes in its weight files, and the versions of transformers and of this room. So they
are kept in the user's cache under a digest of these. Importing transformers' model classes takes
longer than merging half a billion weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.common.digest import content_digest
from evomerge.common.errors import InputError
from evomerge.common.remembered import recall, remember
from evomerge.common.version import __version__
from evomerge.models.files.lazy_tensors import LazyTensors
from evomerge.models.files.shards import StoredTensor, read_stored
from evomerge.models.layout import Layout, TensorSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KIND = "models"
"""The folder in the cache."""


@dataclass(frozen=True)
class KnownModel:
    """A language model whose tensors are all stored as transformers computes with them.

    Attributes:
        key: the JSON value that decides the rest.
        stored_as: canonical name → the name that the tensor is stored by.
    """

    key: Any
    layout: Layout
    stored_as: Mapping[str, str]
    tensors: LazyTensors


def recall_model(folder: Path, flags: Mapping[str, bool]) -> KnownModel | None:
    """Open a folder by what is remembered of such a model; None where that is nothing.

    Args:
        flags: as `open_checkpoint` takes them; of a model with code of its own nothing is kept.
    """
    if flags["trust_remote_code"]:
        return None
    try:
        stored = read_stored(folder, flags["allow_pickle"])
        key = _key(folder, stored)
        found = recall(KIND, key)
        layout, stored_as, left_out = _layout(found["layout"]), found["names"], found["left_out"]
        tensors = {name: stored[stored_as[name]].tensor for name in layout.names}
    # What is wrong with a model is said where it is opened otherwise; a file in the cache may be
    # of any form.
    except (InputError, OSError, TypeError, KeyError, ValueError):
        return None
    return KnownModel(key, layout, stored_as, LazyTensors(tensors, tuple(left_out)))


def remember_model(
    folder: Path,
    flags: Mapping[str, bool],
    config: PretrainedConfig,
    layout: Layout,
    stored: Mapping[str, StoredTensor],
    tensors: LazyTensors,
) -> KnownModel | None:
    """Keep what was found out about a model; None, and nothing kept, unless it is a plain one.

    It is none if it has code of its own, is part of a multimodal one, or if not every stored tensor
    is one of `tensors`, or left out of them: that others may be left away was seen in their values.
    """
    alone = config.get_text_config(decoder=True) is config
    if flags["trust_remote_code"] or not alone:
        return None
    names = {id(entry.tensor): name for name, entry in stored.items()}
    stored_as = {
        name: names[id(tensor)]
        for name in layout.names
        for tensor in tensors.mapped(name)
        if id(tensor) in names
    }
    if len(stored_as) < len(layout.names) or len(stored) > len(stored_as) + len(tensors.left_out):
        return None
    with suppress(OSError):
        key = _key(folder, stored)
        found = {"layout": _plain(layout), "names": stored_as, "left_out": tensors.left_out}
        remember(KIND, key, found)
        return KnownModel(key, layout, stored_as, tensors)
    return None


def _key(folder: Path, stored: Mapping[str, StoredTensor]) -> Any:
    """Return what decides all that is remembered of a model.

    Raises:
        OSError: there is no config.
        ValueError: its config names other files.
    """
    text = (folder / "config.json").read_bytes()
    if b"configuration_files" in text:
        raise ValueError("a config for each version of transformers")
    tensors = [[n, list(e.tensor.shape), str(e.tensor.dtype)] for n, e in stored.items()]
    return {
        "config": hashlib.sha256(text).hexdigest(),
        "tensors": content_digest(sorted(tensors)),
        "by": made_by(),
    }


@cache
def made_by() -> Mapping[str, str]:
    """Return the versions of what looks at models: of transformers, and of this room's code."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    return {
        "transformers": version("transformers"),
        "evomerge": __version__,
        "code": code.hexdigest(),
    }


def _plain(layout: Layout) -> dict[str, Any]:
    values = {field.name: getattr(layout, field.name) for field in fields(layout)}
    return {**values, "tensors": [astuple(spec) for spec in layout.tensors]}


def _layout(found: Mapping[str, Any]) -> Layout:
    tensors = tuple(
        TensorSpec(name, tuple(shape), *rest) for name, shape, *rest in found["tensors"]
    )
    return Layout(**{**found, "tensors": tensors})
