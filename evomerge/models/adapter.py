"""Read LoRA adapters as experts: PEFT's own merge onto the base, one layer at a time.

PEFT puts its layers on a skeleton without weights, by its own reading of `adapter_config.json`. A
tensor that is read gets its layer copied, filled with the base's weights and merged. So ranks and
scales per layer, rsLoRA, DoRA, transposed layers, embeddings and stacked experts follow PEFT's
rules, dtypes included (adapters are widened to float32, as `PeftModel.from_pretrained` does).
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evomerge.common.data_files import json_data, read_text
from evomerge.common.digest import content_digest
from evomerge.common.errors import InputError
from evomerge.common.one_thread import one_thread
from evomerge.models.canonical_names import same_bytes, unwrapped_name
from evomerge.models.checkpoint import Checkpoint, tensor_digest
from evomerge.models.files.lazy_tensors import Computed, LazyTensors
from evomerge.models.files.shards import ALLOW_PICKLE, PICKLED, SAFETENSORS, open_weights
from evomerge.models.layout import Layout, build_skeleton
from evomerge.models.messages import campaign_key, reason

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PretrainedConfig

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_WAY_OUT = "merge it with peft (merge_and_unload, save_pretrained) and give the result"
_ADAPTER = "default"
_WHOLE = "(?:modules_to_save|original_module|base_layer)"
"""The modules by which PEFT names the whole weight of a module that it wraps."""

_MEANING = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "target_parameters", "modules_to_save", "bias"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
)
"""The keys of the config that decide what the adapter's tensors mean."""

_WITHOUT_EFFECT = frozenset(
    {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
    | {"inference_mode", "lora_dropout", "init_lora_weights", "runtime_config", "eva_config"}
    | {"ensure_weight_tying", "megatron_config", "megatron_core", "loftq_config"}
)
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""The initializations that leave the base as it is; the others train against a changed base."""


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter and no model of its own.

    Weights without a `config.json` are none: TRL saves a value head beside an adapter so.
    """
    weights = (f"{file}{index}" for file in (SAFETENSORS, PICKLED) for index in ("", ".index.json"))
    whole = (folder / "config.json").is_file() and any((folder / n).exists() for n in weights)
    return (folder / CONFIG).is_file() and not whole


class Adapter(Checkpoint):
    """An adapter merged onto the campaign's base: every tensor it changes is made when read.

    Attributes:
        base: the model it is merged onto.
        trained_on: the base model that its config names, None if it names none.
    """

    def __init__(
        self,
        name: str,
        spec: str,
        folder: Path,
        base: Checkpoint,
        flags: Mapping[str, bool],
    ) -> None:
        raw = _read_config(folder)
        stored = _open(folder, flags["allow_pickle"])
        config = _resized(base, _vocabulary_rows(folder, stored, base))
        model = _load(folder, stored, base, config, flags["trust_remote_code"])
        changed = _changed_tensors(model, base)
        layout = _layout(base.layout, config, changed)
        super().__init__(name, spec, folder, config, layout, _tensors(changed, base), flags)
        self.trained_on: str | None = raw.get("base_model_name_or_path")
        self.base, self._stored, self._meaning = base, stored, _meaning(raw)

    @cached_property
    def digest(self) -> str:
        """32 hex digits over the adapter's tensors, what its config says of them, and the base.

        Merged weights do not enter: a matrix product rounds them in its own way on each machine.
        """
        tensors = {key: tensor_digest(tensor) for key, tensor in self._stored.items()}
        return content_digest(
            {"adapter": tensors, "config": self._meaning, "base": self.base.digest}
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return open_adapter, (self.name, self.spec, self.folder, self.base, dict(self._flags))


def open_adapter(
    name: str, spec: str, folder: Path, base: Checkpoint, flags: Mapping[str, bool]
) -> Adapter:
    """Open an adapter's folder over an open base; nothing is merged yet.

    Args:
        flags: as `open_checkpoint` takes them.

    Raises:
        InputError: the adapter is of a kind that is not merged here, damaged, or not for a model
            like the base.
    """
    try:
        return Adapter(name, spec, folder, base, flags)
    except InputError as error:
        raise InputError(f"{campaign_key(name)}: {error}") from None


def _read_config(folder: Path) -> dict[str, Any]:
    """Read the adapter's config, and refuse what it asks for and is not merged here.

    Raises:
        InputError: not JSON, or a kind of adapter that is not merged here; names the key.
    """
    from peft import LoraConfig

    path = folder / CONFIG
    raw = json_data(read_text(path), str(path))
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        kind = raw.get("peft_type") if isinstance(raw, dict) else raw
        raise InputError(f"{path}: peft_type {kind!r}; only LORA is merged here: {_WAY_OUT}")
    if raw.get("init_lora_weights", True) not in _PLAIN_INITS:
        raise InputError(
            f"{path}: init_lora_weights {raw['init_lora_weights']!r} changes the base before "
            "training; save it with peft's path_initial_model_for_weight_conversion, or "
            f"{_WAY_OUT}"
        )
    defaults = LoraConfig()
    for key in sorted(raw.keys() - {*_MEANING, *_WITHOUT_EFFECT}):
        if raw[key] and raw[key] != getattr(defaults, key, None):
            raise InputError(f"{path}: {key} is not merged here: {_WAY_OUT}")
    return raw


def _meaning(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the config's values that decide the merge; PEFT writes its sets in any order."""
    found = {key: raw[key] for key in _MEANING if raw.get(key)}
    return {k: sorted(map(str, v)) if isinstance(v, list) else v for k, v in found.items()}


def _open(folder: Path, allow_pickle: bool) -> dict[str, Tensor]:
    path = next((folder / file for file in _WEIGHTS if (folder / file).is_file()), None)
    if path is None:
        raise InputError(f"{folder}: has {CONFIG}, but no {_WEIGHTS[0]}")
    if path.name != _WEIGHTS[0] and not allow_pickle:
        raise InputError(
            f"{folder}: only pickled weights ({path.name}), which can run code when opened; "
            f"{ALLOW_PICKLE}"
        )
    return {unwrapped_name(name): entry.tensor for name, entry in open_weights(path).items()}


def _vocabulary_rows(folder: Path, stored: Mapping[str, Tensor], base: Checkpoint) -> int:
    """Return the vocabulary rows the adapter was trained with: the base's, or those it has stored.

    With added tokens PEFT stores the resized embedding and head, trained or not.

    Raises:
        InputError: the stored tensors have several numbers of rows.
    """
    vocabulary = [spec.name for spec in base.layout.tensors if spec.vocab_dim is not None]
    found: dict[str, int] = {}
    for name in (*vocabulary, *base.layout.tied):
        module = re.escape(name.rpartition(".")[0])
        whole = re.compile(rf"^base_model\.model\.{module}(\.{_WHOLE})?\.weight$")
        found |= {key: len(tensor) for key, tensor in stored.items() if whole.match(key)}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{key} {rows}" for key, rows in found.items())
        raise InputError(f"{folder}: its vocabularies differ in rows: {told}; save it again")
    return next(iter(found.values()), base.layout.vocab_size)


def _resized(base: Checkpoint, rows: int) -> PretrainedConfig:
    """Copy the base's config with another number of vocabulary rows."""
    config = copy.deepcopy(base.config)
    if rows != base.layout.vocab_size:
        config.get_text_config(decoder=True).vocab_size = rows
    return config


def _layout(layout: Layout, config: PretrainedConfig, changed: Container[str]) -> Layout:
    """Give the base's layout the rows of the vocabulary tensors that the adapter has resized."""
    rows = config.get_text_config(decoder=True).vocab_size
    if rows == layout.vocab_size:
        return layout
    specs = (
        replace(spec, shape=(rows, *spec.shape[1:]))
        if spec.vocab_dim is not None and spec.name in changed
        else spec
        for spec in layout.tensors
    )
    return replace(layout, tensors=tuple(specs), vocab_size=rows)


def _load(
    folder: Path,
    stored: Mapping[str, Tensor],
    base: Checkpoint,
    config: PretrainedConfig,
    trust_remote_code: bool,
) -> PeftModel:
    """Put PEFT on the base's skeleton, with the adapter's tensors and none of the base's.

    Args:
        config: the base's, with the adapter's vocabulary rows.

    Raises:
        InputError: the adapter does not fit; names the tensor or the module.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    skeleton = build_skeleton(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    # PEFT stores a resized module that was trained whole three times: as it was, and twice trained.
    twice = {
        key for key in stored if key.replace(".modules_to_save.", ".") in stored.keys() - {key}
    }
    stored = {
        key: tensor
        for key, tensor in stored.items()
        if key not in twice and ".original_module." not in key
    }
    try:
        lora: LoraConfig = LoraConfig.from_pretrained(str(folder))
        lora.init_lora_weights, lora.inference_mode = False, True
        with warnings.catch_warnings():  # what PEFT sets right by itself, and ties, seen to below
            warnings.simplefilter("ignore")
            model = get_peft_model(
                skeleton, lora, autocast_adapter_dtype=False, low_cpu_mem_usage=True
            )
            for layer in model.modules():
                if isinstance(layer, BaseTunerLayer):  # loading would move it to the base's device
                    layer._move_adapter_to_device_of_base_layer = lambda *_: None
            _check_shapes(folder, stored, model)
            loaded = set_peft_model_state_dict(model, dict(stored), low_cpu_mem_usage=True)
    except InputError:
        raise
    # PEFT refuses each thing in its own way: no such module, another shape, a key that is missing.
    except Exception as error:
        raise InputError(
            f"{folder}: peft cannot put it on {base.layout.architecture} in {base.folder}: "
            f"{reason(error)}; was it trained on another base?"
        ) from None
    if loaded.unexpected_keys:
        raise InputError(
            f"{folder}: has a tensor {loaded.unexpected_keys[0]} that fits nothing in the base; "
            "was it trained on another base?"
        )
    return model


def _check_shapes(folder: Path, stored: Mapping[str, Tensor], model: PeftModel) -> None:
    """Refuse weights of another rank than the config's, or of another base's sizes."""
    from peft import get_peft_model_state_dict

    for key, wanted in get_peft_model_state_dict(model, save_embedding_layers=False).items():
        found = stored.get(key)
        if found is None or found.shape == wanted.shape:
            continue
        rank = 1 if "lora_B" in key or "lora_embedding_B" in key else 0
        ours, theirs = list(wanted.shape), list(found.shape)
        if "lora_" in key and len(ours) == len(theirs) == 2 and ours[1 - rank] == theirs[1 - rank]:
            raise InputError(
                f"{folder}: its weights have rank {theirs[rank]}, but its {CONFIG} says "
                f"{ours[rank]} (r, rank_pattern) for {key}; give the config it was trained with"
            )
        raise InputError(
            f"{folder}: {key} has shape {theirs}, the base calls for {ours}; was it trained on "
            "another base?"
        )


def _changed_tensors(model: PeftModel, base: Checkpoint) -> dict[str, Tensor | Computed]:
    """Collect what the adapter changes; refuse it where only one of two tied tensors is."""
    changed = dict(_changed(model, base))
    for name in changed:
        _check_tie(name, changed, base)
    return changed


def _tensors(changed: Mapping[str, Tensor | Computed], base: Checkpoint) -> LazyTensors:
    """List every tensor of the base: its own, replaced, or to be merged when it is read."""
    entries: dict[str, Tensor | Computed] = {}
    for name in base.names():
        own = Computed(base.dtype(name), partial(base.read, name))
        entries[name] = changed.get(name, own)
    return LazyTensors(entries)


def _changed(model: PeftModel, base: Checkpoint) -> Iterator[tuple[str, Tensor | Computed]]:
    """Yield the tensors that the adapter changes, under canonical names."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    inside = "\0"
    for path, module in model.get_base_model().named_modules():
        if path.startswith(inside):
            continue
        if isinstance(module, ModulesToSaveWrapper):  # trained whole: it replaces the base's
            inside = f"{path}."
            for name, tensor in module.modules_to_save[_ADAPTER].state_dict().items():
                yield _replacement(f"{path}.{name}", tensor, base)
        elif isinstance(module, BaseTunerLayer):  # low rank: merged onto the base's when read
            inside = f"{path}."
            yield from _merges(path, module, base)
        else:
            for name, tensor in module.named_parameters(path, recurse=False):
                if not tensor.is_meta:  # with `bias: all` the adapter holds biases of its own
                    yield _replacement(name, tensor.detach(), base)


def _replacement(name: str, tensor: Tensor, base: Checkpoint) -> tuple[str, Tensor]:
    if tensor.is_meta:
        raise InputError(f"the adapter lacks {name}, though it is among its modules_to_save")
    return name, tensor.to(base.dtype(name))


def _merges(path: str, layer: Any, base: Checkpoint) -> Iterator[tuple[str, Computed]]:
    for key, weight in layer.named_parameters():
        if key.startswith("lora_") and weight.is_meta:
            raise InputError(f"the adapter lacks {path}.{key}; download it again")
    for name, _ in layer.get_base_layer().named_parameters(recurse=False):
        full = f"{path}.{name}"
        yield full, Computed(base.dtype(full), partial(_merge, layer, path, name, base))


@torch.no_grad()
def _merge(layer: Any, path: str, name: str, base: Checkpoint) -> Tensor:
    """Merge one layer by PEFT, and return one of its tensors, of the base's dtype."""
    from peft.tuners.tuners_utils import cast_adapter_dtype

    # 1. a copy of PEFT's layer, filled with the base's weights
    layer = copy.deepcopy(layer)
    target = layer.get_base_layer()
    for key, weight in list(target.named_parameters(recurse=False)):
        own = base.read(f"{path}.{key}")
        # With `bias: all` the adapter has put a value of its own there.
        value = own.clone() if weight.is_meta else weight.to(own.dtype)
        setattr(target, key, nn.Parameter(value, requires_grad=False))
    # 2. merged: embeddings and linear maps give a plain layer back, stacked experts change theirs
    cast_adapter_dtype(layer, _ADAPTER)
    with one_thread():  # the products of its factors have other bytes on eight threads than on one
        if hasattr(layer, "unload_and_optionally_merge_module"):
            target = layer.unload_and_optionally_merge_module(True, False, None)
        else:
            layer.merge()
    return getattr(target, name).data


def _check_tie(name: str, changed: Mapping[str, Tensor | Computed], base: Checkpoint) -> None:
    """Refuse an adapter that changes one of two tied tensors: a merge has one place for both.

    LoRA on the embedding alone is PEFT's own case: its merge writes the shared weight.
    """
    tied = base.layout.tied
    partners = [tied[name]] if name in tied else [d for d, owner in tied.items() if owner == name]
    for partner in partners:
        ours, theirs = changed[name], changed.get(partner)
        if isinstance(ours, Computed) and name not in tied and theirs is None:
            continue
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor) and same_bytes(ours, theirs):
            continue
        raise InputError(
            f"the adapter changes {name}, which the base ties to {partner}, so that a merge has "
            "no place for it; give an expert that was finetuned with tied embeddings"
        )
