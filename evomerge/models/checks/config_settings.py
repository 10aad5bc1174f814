"""Compare the config settings that give equal weights another meaning: heads, rotary and so on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from evomerge.common.errors import InputError
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.messages import campaign_key

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")
"""The keys by which the attention's rows are cut into heads; merged rows must agree in them."""

_SETTINGS = (
    "rope_parameters",
    "layer_types",
    "sliding_window",
    "hidden_act",
    "hidden_activation",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "num_experts_per_tok",
)
"""The keys by which a model computes with its weights; experts may differ in them. Older
configs' `rope_theta` and the like are in `rope_parameters` once transformers has read them."""

_ABSENT = object()


def check_heads(base: Checkpoint, expert: Checkpoint) -> None:
    """Refuse an expert whose attention cuts equal tensors into other heads.

    Raises:
        InputError: names the model, the key and both values.
    """
    for key, ours, theirs in _differences(base, expert, _HEADS):
        raise InputError(
            f"{campaign_key(expert.name)}: {key} is {theirs} in its config.json, but {ours} in the "
            "base's: the same rows belong to other heads; give a model finetuned from the base"
        )


def settings_notes(base: Checkpoint, expert: Checkpoint) -> Iterator[str]:
    """Yield a note per setting in which an expert computes otherwise than the base."""
    for key, ours, theirs in _differences(base, expert, _SETTINGS):
        yield (
            f"{campaign_key(expert.name)}: {key} is {_short(theirs)}, {_short(ours)} in the base; "
            "every merge, and this expert as a parent, is scored with the base's"
        )


def _differences(
    base: Checkpoint, expert: Checkpoint, keys: tuple[str, ...]
) -> Iterator[tuple[str, Any, Any]]:
    plain = base.known is not None and expert.known is not None
    if plain and base.lasting_config == expert.lasting_config:
        return  # their config.json say the same, so there is no need to load the configs
    ours, theirs = _text(base.config), _text(expert.config)
    for key in keys:
        a, b = getattr(ours, key, _ABSENT), getattr(theirs, key, _ABSENT)
        if _ABSENT not in (a, b) and a != b:
            yield key, a, b


def _text(config: PretrainedConfig) -> PretrainedConfig:
    return config.get_text_config(decoder=True)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
