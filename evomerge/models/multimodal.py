"""Open the text model inside a multimodal checkpoint, and merge it as the language model it is.

LLaVA, Gemma 3, InternVL, Mistral 3 and their like hold a decoder that transformers also has as a
language model of its own. Its tensors are the source, under that model's names, so that experts
may be multimodal models or plain language models of the same shape, and search builds the decoder
alone. What is left (vision tower, projector) is the base's, and comes back when a merge is saved.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from evomerge.common.digest import content_digest
from evomerge.common.errors import InputError
from evomerge.models.canonical_names import canonical_tensors
from evomerge.models.checkpoint import Checkpoint, load_config, tensor_digest, unquantized
from evomerge.models.files.conversion import as_saved
from evomerge.models.files.lazy_tensors import LazyTensors
from evomerge.models.files.shards import read_stored
from evomerge.models.layout import Layout, TensorSpec, build_skeleton, layout_of, unshared
from evomerge.models.messages import campaign_key, reason

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class MultimodalModel:
    """A multimodal model around its text model.

    Attributes:
        config: the multimodal model's.
        model: its skeleton, without weights.
        renamed: prefix of tensor names in the text model → prefix in this one.
        rest: the tensors outside the text model, by this model's names.
    """

    config: PretrainedConfig
    model: PreTrainedModel
    renamed: Mapping[str, str]
    rest: LazyTensors

    def name(self, own: str) -> str:
        """Rename a tensor of the text model as this model calls it."""
        return next(
            new + own.removeprefix(old) for old, new in self.renamed.items() if own.startswith(old)
        )


class TextModel(Checkpoint):
    """The text model of a multimodal checkpoint as a source.

    Attributes:
        config, layout: those of the text model by itself.
        whole: the multimodal model.
    """

    whole: MultimodalModel

    @cached_property
    def digest(self) -> str:
        """32 hex digits over the text model's digest and the tensors outside it."""
        rest = {name: tensor_digest(tensor) for name, tensor in self.whole.rest.items()}
        return content_digest({"tower": super().digest, "rest": rest})

    @override
    def as_saved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named = {self.whole.name(name): tensor for name, tensor in tensors.items()}
        return as_saved(self.whole.model, named)

    @override
    def beside(self) -> dict[str, Tensor]:
        return as_saved(self.whole.model, dict(self.whole.rest))

    @override
    def config_to_save(self) -> PretrainedConfig:
        config = unquantized(self.whole.config)
        config.architectures = [type(self.whole.model).__name__]
        return config

    def __reduce__(self) -> tuple[Any, ...]:
        return open_text_model, (self.name, self.spec, self.folder, dict(self._flags))


def is_multimodal(config: PretrainedConfig) -> bool:
    """Tell whether a config is of a model with a decoder among other parts."""
    return config.get_text_config(decoder=True) is not config and not config.is_encoder_decoder


def open_text_model(name: str, spec: str, folder: Path, flags: Mapping[str, bool]) -> TextModel:
    """Open the text model of a multimodal model's folder; tensors are memory-mapped, none is read.

    Raises:
        InputError: the model cannot be used, or transformers has no language model for its decoder.
    """
    trust = flags["trust_remote_code"]
    try:
        # 1. skeletons of the multimodal model, and of its text model by itself
        config = load_config(folder, trust)
        model = _build(config, trust)
        text = copy.deepcopy(config.get_text_config(decoder=True))
        text.tie_word_embeddings = config.tie_word_embeddings
        alone = _build_alone(text, model, trust)
        layout = layout_of(alone)
        # 2. every stored tensor under the multimodal model's names
        stored = read_stored(folder, flags["allow_pickle"])
        tensors = canonical_tensors(stored, model, _flat(model, layout), folder)
        # 3. those of the text model under its own
        renamed = _renamed(alone, model)
        whole = MultimodalModel(config, model, renamed, LazyTensors({}))
        own = {name: whole.name(name) for name in layout.names}
        _check_shapes(layout, own, model)
    except InputError as error:
        raise InputError(f"{campaign_key(name)}: {error}") from None
    found = set(own.values())
    rest = tensors.part({name: name for name in tensors if name not in found})
    opened = TextModel(name, spec, folder, text, layout, tensors.part(own), flags)
    opened.whole = MultimodalModel(config, model, renamed, rest)
    return opened


def _build(config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    from transformers import AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(
                config, trust_remote_code=trust_remote_code
            )
    # Whatever the architecture's own code raises, the cause is the config the user gave.
    except Exception as error:
        raise InputError(
            f"transformers cannot build a model of text and images from this config: "
            f"{reason(error)}"
        ) from None


def _build_alone(
    text: PretrainedConfig, whole: PreTrainedModel, trust_remote_code: bool
) -> PreTrainedModel:
    try:
        return build_skeleton(text, trust_remote_code=trust_remote_code)
    except InputError as error:
        raise InputError(
            f"the text model inside {type(whole).__name__} ({text.model_type}) is no language "
            f"model of its own, so that it cannot be merged here ({error})"
        ) from None


def _renamed(alone: PreTrainedModel, whole: PreTrainedModel) -> dict[str, str]:
    """Map the name prefixes of decoder and head from the text model to the multimodal one."""
    decoder, prefix = alone.base_model, alone.base_model_prefix
    found = [name for name, module in whole.named_modules() if type(module) is type(decoder)]
    if len(found) != 1:
        raise InputError(
            f"{type(whole).__name__} has {len(found)} modules of type {type(decoder).__name__}; "
            "only models with one text model inside can be merged"
        )
    return {f"{prefix}.": f"{found[0]}.", _head(alone): _head(whole)}


def _head(model: PreTrainedModel) -> str:
    head = model.get_output_embeddings()
    return next(f"{name}." for name, module in model.named_modules() if module is head)


def _flat(model: PreTrainedModel, text: Layout) -> Layout:
    """Build a layout without layers, to read a multimodal model's tensors by."""
    tensors, tied = unshared(model.state_dict(keep_vars=True))
    specs = [
        TensorSpec(name, tuple(weight.shape), None, "other", name, None)
        for name, weight in tensors.items()
    ]
    return Layout(type(model).__name__, 0, "", tuple(specs), tied, text.vocab_size)


def _check_shapes(layout: Layout, own: Mapping[str, str], whole: PreTrainedModel) -> None:
    state = whole.state_dict()
    for spec in layout.tensors:
        found = state.get(own[spec.name])
        if found is None or tuple(found.shape) != spec.shape:
            raise InputError(
                f"{type(whole).__name__} has no {own[spec.name]} of shape {list(spec.shape)}, as "
                f"its language model {layout.architecture} has"
            )
