"""Open checkpoints lazily: local folders or hub ids, tensors under canonical names."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from evomerge.common.data_files import json_data, read_text
from evomerge.common.digest import content_digest
from evomerge.common.errors import InputError, ModelNotFoundError
from evomerge.common.remembered import remembered
from evomerge.models.canonical_names import as_bytes, canonical_tensors, stored_layers
from evomerge.models.files.conversion import as_saved
from evomerge.models.files.finite import NonFinite, count_non_finite
from evomerge.models.files.hash_ahead import (
    hashed_ahead,
    recall_digests,
    remember_digests,
    states,
)
from evomerge.models.files.lazy_tensors import LazyTensors
from evomerge.models.files.page_release import reading_once
from evomerge.models.files.shards import read_stored
from evomerge.models.known_models import KIND, KnownModel, recall_model, remember_model
from evomerge.models.layout import Layout, build_skeleton, layout_of
from evomerge.models.messages import campaign_key, reason
from evomerge.models.source import Source

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from evomerge.models.files.calibration_file import CalibrationFile

VOLATILE = frozenset(
    {"_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype", "use_cache"}
)
"""Config keys that differ between equal models: by whom, with what and from where it was saved."""

_HUB_ID = re.compile(r"^(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?$")
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken")
_HUB_IGNORED = ("*/*", "consolidated*")
"""Copies of the same weights in other formats, which are not read."""

_PARTS = re.compile(r"(layers?|blocks|experts|depths?|num_labels)$")
_MOST_PARTS = 2_000
"""The largest count of layers, experts or the like that is accepted. transformers builds them one
by one; 2,000 layers take some ten seconds."""


class Checkpoint(Source):
    """A saved model: a `Source` with its layout. Made by `open_checkpoint`.

    Pickling keeps the spec and the flags, and unpickling opens the checkpoint again.

    Attributes:
        spec: the folder or hub id as the user gave it.
        layout: its tensors' places in the model.
        known: what is remembered of such a model; None where nothing may be.
    """

    _calibration: CalibrationFile | None = None

    def __init__(
        self,
        name: str,
        spec: str,
        folder: Path,
        config: PretrainedConfig | None,
        layout: Layout,
        tensors: LazyTensors,
        flags: Mapping[str, bool],
        known: KnownModel | None = None,
    ) -> None:
        """Without a `config` it is loaded when it is first needed."""
        self._name, self._folder, self._loaded = name, folder, config
        self._tensors, self._flags = tensors, flags
        self.spec = spec
        self.layout = layout
        self.known = known

    @property
    @override
    def name(self) -> str:
        return self._name

    @property
    @override
    def folder(self) -> Path:
        return self._folder

    @property
    @override
    def tokenizer_folder(self) -> Path:
        return self._folder

    @property
    def flags(self) -> Mapping[str, bool]:
        """What was allowed when it was opened: `allow_pickle`, `trust_remote_code`."""
        return self._flags

    @property
    @override
    def config(self) -> PretrainedConfig:
        return self._config

    @property
    def _config(self) -> PretrainedConfig:
        if self._loaded is None:
            self._loaded = load_config(self._folder, self._flags["trust_remote_code"])
        return self._loaded

    @property
    @override
    def calibration(self) -> CalibrationFile | None:
        return self._calibration

    def calibrate_with(self, file: CalibrationFile) -> None:
        """Let a file say what the model's data says of its weights."""
        self._calibration = file

    @override
    def names(self) -> tuple[str, ...]:
        return self.layout.names

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        return self.layout.tensor(name).shape

    @override
    def dtype(self, name: str) -> torch.dtype:
        return self._tensors.dtype(self.layout.tensor(name).name)

    @override
    def read(self, name: str) -> Tensor:
        return self._tensors[self.layout.tensor(name).name]

    @override
    def mapped(self, name: str) -> Sequence[Tensor]:
        return self._tensors.mapped(self.layout.tensor(name).name)

    @override
    def as_saved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._saved_as_they_are:
            return {name: tensor.contiguous() for name, tensor in tensors.items()}
        return as_saved(self._skeleton, tensors)

    @cached_property
    def _saved_as_they_are(self) -> bool:
        """Whether transformers saves every tensor as it is; False where that is not remembered."""

        def find() -> bool:
            plain = {s.name: torch.empty(s.shape, device="meta") for s in self.layout.tensors}
            saved = as_saved(self._skeleton, plain)
            return saved.keys() == plain.keys() and all(saved[n] is t for n, t in plain.items())

        return self.known is not None and bool(self.remembered("saved as they are", find))

    @override
    def beside(self) -> dict[str, Tensor]:
        return {}

    @property
    def left_out(self) -> tuple[str, ...]:
        """Stored names of tensors that are no part of the language model, such as a value head."""
        return self._tensors.left_out

    def config_to_save(self) -> PretrainedConfig:
        """Copy the config that a merge of the model's shape is saved with."""
        config = unquantized(self._config)
        config.architectures = [self.layout.architecture]
        return config

    def remembered(self, what: str, find: Callable[[], Any]) -> Any:
        """Return `find()`, a JSON value that config and tensor names decide, remembered if may be.

        Args:
            what: the name of that value.
        """
        key = None if self.known is None else {**self.known.key, "what": what}
        return remembered(KIND, key, find)

    @cached_property
    def _skeleton(self) -> PreTrainedModel:
        return build_skeleton(self._config, trust_remote_code=self._flags["trust_remote_code"])

    @property
    def tensor_digests(self) -> Mapping[str, str]:
        """Canonical name → SHA-256 over dtype, shape and bytes; reads all weights once."""
        return self._scanned[0]

    @property
    def non_finite(self) -> Mapping[str, NonFinite]:
        """Canonical name → counts, of the tensors with NaN or infinity; from the same one pass."""
        return self._scanned[1]

    @cached_property
    def _scanned(self) -> tuple[Mapping[str, str], dict[str, NonFinite]]:
        # 1. digests on record are of files that have not changed since, and of finite weights
        began, files, model = time.time(), states(self.folder), None
        if self.known is not None:
            model = content_digest(self.known.key)
            if kept := recall_digests(self.folder, model):
                return kept, {}

        # 2. whether each tensor is finite, and its digest unless another process is at it
        wait = hashed_ahead(self.folder) if self.known is not None else None

        def scan(name: str) -> tuple[str, NonFinite]:
            tensor = self._tensors[name]
            return "" if wait else tensor_digest(tensor), count_non_finite(tensor)

        digests, damaged = {}, {}
        mapped = (tensor for name in self._tensors for tensor in self._tensors.mapped(name))
        with reading_once(mapped), ThreadPoolExecutor() as pool:
            for name, (digest, found) in zip(
                self._tensors, pool.map(scan, self._tensors), strict=True
            ):
                digests[name] = digest
                if found:
                    damaged[name] = found
        if wait is not None and self.known is not None:
            made, stored_as = wait(), self.known.stored_as
            for name in digests:
                digests[name] = made.get(stored_as[name]) or tensor_digest(self._tensors[name])
        # 3. for the next time
        if model is not None and not damaged:
            remember_digests(self.folder, model, files, began, digests)
        return digests, damaged

    @cached_property
    def digest(self) -> str:
        """32 hex digits over tensors and config, independent of folder, sharding and metadata.

        The config counts as it is written, less `VOLATILE`, so that a newer transformers with
        new defaults gives an unchanged model the same digest.
        """
        return content_digest({"tensors": self.tensor_digests, "config": self.lasting_config})

    @cached_property
    def lasting_config(self) -> Any:
        """The content of `config.json`, less `VOLATILE`; text for NaN and infinity."""
        text = (self.folder / "config.json").read_text(encoding="utf-8")
        return _lasting(json.loads(text, parse_constant=str))  # canonical JSON has no Infinity

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.name, self.spec, dict(self._flags))

    @override
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        made = self.__reduce__()
        file = self._calibration
        return made if file is None else (*made, {"_calibration": file})


def open_checkpoint(
    name: str, spec: str, *, allow_pickle: bool = False, trust_remote_code: bool = False
) -> Checkpoint:
    """Open a model folder or a hub id; tensors are memory-mapped, none is read.

    Args:
        name: the user's name for the model; errors show it as `models.experts.<name>`.
        spec: a folder, or `org/model` with an optional `@revision`.
        allow_pickle: read `pytorch_model.bin` where there are no safetensors.
        trust_remote_code: run model code that comes with the checkpoint.

    Raises:
        InputError: the folder, its config, its weights, or a tensor in them cannot be used.
    """
    flags = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    folder = find_folder(name, spec, **flags)
    if known := recall_model(folder, flags):
        return Checkpoint(name, spec, folder, None, known.layout, known.tensors, flags, known)
    try:
        config = load_config(folder, trust_remote_code)
        model = build_skeleton(config, trust_remote_code=trust_remote_code)
        layout = layout_of(model)
        stored = read_stored(folder, allow_pickle)
        tensors = canonical_tensors(stored, model, layout, folder)
    except InputError as error:
        raise InputError(f"{campaign_key(name)}: {error}") from None
    known = remember_model(folder, flags, config, layout, stored, tensors)
    return Checkpoint(name, spec, folder, config, layout, tensors, flags, known)


def find_folder(
    name: str, spec: str, *, allow_pickle: bool = False, trust_remote_code: bool = False
) -> Path:
    """Return the local folder of a spec; a hub id is downloaded, or found in the hub's cache.

    Raises:
        InputError: no such folder, or a hub id that is neither reachable nor cached.
    """
    if Path(spec).is_dir():
        return Path(spec)
    key = campaign_key(name)
    match = _HUB_ID.match(spec)
    if match is None:
        if Path(spec).is_file():
            gguf = "; GGUF is not read" if Path(spec).suffix == ".gguf" else ""
            raise InputError(
                f"{key}: {spec}: a file; give the folder of a transformers model, with its "
                f"config.json and safetensors{gguf}"
            )
        slashes = "; write / between folders" if "\\" in spec else ""
        raise ModelNotFoundError(
            f"{key}: {spec}: no such folder, and not a hub id (org/model@revision){slashes}"
        )
    patterns = [*_HUB_FILES, *["*.bin"] * allow_pickle, *["*.py"] * trust_remote_code]
    return _snapshot(key, spec, match["repo"], match["revision"], patterns, _HUB_IGNORED)


def configs_of(
    name: str, spec: str, trust_remote_code: bool, *, download: bool = True
) -> Path | None:
    """Return a folder with a model's configs and tokenizer, or None where the spec names nothing.

    Of a hub id weights are there only if they are cached already; none are downloaded, and without
    `download` the configs are not, either.

    Raises:
        InputError: a hub id that is neither reachable nor cached.
    """
    match = _HUB_ID.match(spec)
    if Path(spec).is_dir() or match is None:
        return Path(spec) if Path(spec).is_dir() else None
    patterns = [*_HUB_FILES, *["*.py"] * trust_remote_code]
    ignored = [*_HUB_IGNORED, "*.safetensors", "*.index.json"]
    key = campaign_key(name)
    return _snapshot(key, spec, match["repo"], match["revision"], patterns, ignored, download)


def find_statistics_on_hub(spec: str) -> Path:
    """Return the folder of a hub id's safetensors files, downloaded or found in the hub's cache.

    Raises:
        InputError: not a hub id, or one that is neither reachable nor cached.
    """
    match = _HUB_ID.match(spec)
    if match is None:
        raise ModelNotFoundError(
            f"{spec}: no such file or folder, and not a hub id (org/name@revision)"
        )
    repo, revision = match["repo"], match["revision"]
    return _snapshot("calibration", spec, repo, revision, ["*.safetensors"], ["*/*"])


def _snapshot(
    key: str,
    spec: str,
    repo: str,
    revision: str | None,
    patterns: Sequence[str],
    ignored: Sequence[str],
    download: bool = True,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
                local_files_only=not download,
            )
        )
    except LocalEntryNotFoundError:
        raise ModelNotFoundError(
            f"{key}: {spec}: not a folder here, and as a hub id neither cached nor reachable "
            "(offline?); run `hf download` for it where there is a network, or give a folder"
        ) from None
    # No such repository, no access, a broken connection: each layer below has its own exceptions.
    except Exception as error:
        raise ModelNotFoundError(
            f"{key}: {spec}: cannot be had from the hub ({reason(error)})"
        ) from None


def _reopen(name: str, spec: str, flags: Mapping[str, bool]) -> Checkpoint:
    return open_checkpoint(name, spec, **flags)


def load_config(folder: Path, trust_remote_code: bool) -> PretrainedConfig:
    """Load the transformers config of a model's folder.

    Raises:
        InputError: there is none, or transformers refuses it.
    """
    from transformers import AutoConfig

    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise InputError(f"{folder}: an adapter; only experts can be, give a whole model here")
    if not path.is_file():
        inner = sorted(one.parent.name for one in folder.glob("*/config.json"))
        hint = f"; there is one in {', '.join(inner[:3])}" if inner else ""
        raise InputError(f"{folder}: no config.json; give the folder of a transformers model{hint}")
    raw = json_data(read_text(path), str(path))
    if not isinstance(raw, dict):
        raise InputError(f"{path}: not a mapping; give the folder of a transformers model")
    _check_config(raw, path, trust_remote_code)
    try:
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    # Config classes check their values each in their own way, with their own exceptions.
    except Exception as error:
        told = _stale_layers(raw, folder) or f"transformers refuses it: {reason(error)}"
        raise InputError(f"{path}: {told}") from None


def _stale_layers(config: Mapping[str, Any], folder: Path) -> str | None:
    """Say that a config counts other layers than it has types for, which transformers refuses."""
    text = config.get("text_config", config)
    count, types = text.get("num_hidden_layers"), text.get("layer_types")
    if not isinstance(types, list) or not isinstance(count, int) or len(types) == count:
        return None
    stored = None
    with suppress(InputError):
        stored = stored_layers(read_stored(folder, allow_pickle=False))
    found = f"; the weights have {stored}" if stored else ""
    return (
        f"it says {count} layers (num_hidden_layers), but has a type for {len(types)} "
        f"(layer_types){found}; give both the number of layers that the weights have, or download "
        "the model again"
    )


def _check_config(config: Mapping[str, Any], path: Path, trust_remote_code: bool) -> None:
    """Refuse a config that would keep transformers busy for ever, or have it fetch code to run.

    Raises:
        InputError: more layers and the like than `_MOST_PARTS`, or a kernel of the hub's that is
            not trusted; names the key.
    """
    for key, value in config.items():
        if isinstance(value, Mapping) and not key.endswith("_implementation"):
            _check_config(value, path, trust_remote_code)
        counts = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int)]
        if _PARTS.search(key) and max(counts, default=0) > _MOST_PARTS:
            raise InputError(f"{path}: {key} is {max(counts)}; no model has over {_MOST_PARTS}")
        if key.endswith("_implementation") and not trust_remote_code and "/" in str(value):
            raise InputError(
                f"{path}: {key} is {value!r}, code that transformers would fetch from the hub and "
                "run; take the key out or, if you trust it, set models.trust_remote_code: true "
                "(campaign file) or add --trust-remote-code (evomerge merge)"
            )


def unquantized(config: PretrainedConfig) -> PretrainedConfig:
    """Copy a config without its `quantization_config`, which weights that can be read do not need.

    transformers would load the result as quantized.
    """
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def tensor_digest(tensor: Tensor) -> str:
    """Compute SHA-256 over dtype, shape and bytes, as hex digits."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(as_bytes(tensor).numpy().data)
    return digest.hexdigest()


def _lasting(config: Any) -> Any:
    """Drop the volatile keys of a config, at any depth."""
    if not isinstance(config, dict):
        return config
    return {key: _lasting(value) for key, value in config.items() if key not in VOLATILE}
