"""Check models by their configs alone, before their weights are downloaded.

Checked is what a config decides: do the models have one shape, do the tokenizers that are here
agree. What the weights would show is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from evomerge.common.digest import content_digest
from evomerge.common.errors import InputError
from evomerge.config import ModelsConfig
from evomerge.models.adapter import is_adapter
from evomerge.models.canonical_names import quantization_of
from evomerge.models.checkpoint import Checkpoint, configs_of, load_config
from evomerge.models.checks.checked_models import (
    CheckedModels,
    check_architecture,
    check_tensors,
    shape_notes,
    tokenizer_notes,
)
from evomerge.models.checks.config_settings import check_heads, settings_notes
from evomerge.models.files.lazy_tensors import Computed, LazyTensors
from evomerge.models.layout import derive_layout
from evomerge.models.messages import campaign_key
from evomerge.models.tokens.matching import match_vocabularies, vocabulary_notes
from evomerge.models.tokens.tokenizer import load_tokenizer
from evomerge.recipe import BASE

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "adapter_model.*")


class ConfigOnly(Checkpoint):
    """A model without its weights: layout and dtypes are its config's, and nothing can be read."""

    @cached_property
    def tensor_digests(self) -> Mapping[str, str]:
        """Raise InputError: there are no weights."""
        raise InputError(_lacking(self))

    @cached_property
    def digest(self) -> str:
        """32 hex digits over name and config; never equal to a model's digest."""
        config = json.loads((self.folder / "config.json").read_text("utf-8"), parse_constant=str)
        return content_digest({"unread": self.name, "config": config})


def check_configs_only(models: ModelsConfig) -> CheckedModels | None:
    """Check the models by their configs against each other; None where any has weights.

    A spec that is no folder is looked for on the hub; its weights are not downloaded.

    Raises:
        InputError: a config cannot be used, or the models do not fit together; names the model.
    """
    specs = {BASE: models.base, **models.experts}
    folders = {
        name: configs_of(name, spec, models.trust_remote_code) for name, spec in specs.items()
    }
    if any(_has_weights(folder) for folder in folders.values()):
        return None
    base = _open(BASE, specs[BASE], folders[BASE], None, models)
    experts = [_open(name, specs[name], folders[name], base, models) for name in models.experts]
    for expert in experts:
        check_architecture(base, expert)
        check_tensors(base, expert)
        check_heads(base, expert)
    notes = [
        "no weights are here: what a look at them would show (equal, locked or damaged models) is "
        "not checked"
    ]
    if load_tokenizer(base.folder, trust_remote_code=models.trust_remote_code):
        if models.tokenizer is None:
            notes += tokenizer_notes(base, experts, models.trust_remote_code)
    else:
        notes.append(f"models.base: no tokenizer in {base.folder}; it will need one")
    for model in (base, *experts):
        if method := quantization_of(model.config):
            notes.append(
                f"{campaign_key(model.name)}: quantized ({method}), as its config.json says; "
                "quantized weights cannot be merged"
            )
    for expert in experts:
        notes += settings_notes(base, expert)
        notes += shape_notes(base, expert, models.tokenizer is not None)
    sources: dict[str, Checkpoint] = {one.name: one for one in (base, *experts)}
    if models.tokenizer is not None:
        sources = match_vocabularies(sources, models.tokenizer, models.trust_remote_code)
        notes += vocabulary_notes(sources)
    layout = sources[BASE].layout
    return CheckedModels(layout, sources, tuple(notes), True, models.tokenizer)


def _has_weights(folder: Path | None) -> bool:
    """Tell whether a folder has weights, or a recipe to make them of.

    What is found nowhere counts as weights: opening them raises the error.
    """
    configs = ("config.json", "adapter_config.json")
    if folder is None or not any((folder / name).is_file() for name in configs):
        return True
    return any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)


def _open(
    name: str, spec: str, folder: Path | None, base: Checkpoint | None, models: ModelsConfig
) -> ConfigOnly:
    assert folder is not None
    flags = {"allow_pickle": models.allow_pickle, "trust_remote_code": models.trust_remote_code}
    if base is not None and is_adapter(folder):
        folder, config, layout = base.folder, base.config, base.layout
    else:
        try:
            config = load_config(folder, models.trust_remote_code).get_text_config(decoder=True)
            layout = derive_layout(config, trust_remote_code=models.trust_remote_code)
        except InputError as error:
            raise InputError(f"{campaign_key(name)}: {error}") from None
    dtype = config.dtype or torch.float32
    source = ConfigOnly(name, spec, folder, config, layout, LazyTensors({}), flags)
    make = partial(_refuse, source)
    source._tensors = LazyTensors({tensor: Computed(dtype, make) for tensor in layout.names})
    return source


def _refuse(source: Checkpoint) -> Tensor:
    raise InputError(_lacking(source))


def _lacking(source: Checkpoint) -> str:
    return (
        f"{campaign_key(source.name)}: only its config is in {source.folder}; download the weights"
    )
