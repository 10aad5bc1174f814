"""Write the config of a path: a model with another's layers reordered, repeated or dropped.

No architecture is named here. What a config says layer by layer is found by its form, and whether
the result says the same of every layer is seen on a skeleton built from it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from evomerge.common.errors import InputError
from evomerge.models.layout import build_skeleton, layout_of
from evomerge.models.messages import reason

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

_POSITION = "layer_idx"
"""The attribute by which transformers' modules know their place: the index into the KV cache."""


def set_layers(config: PretrainedConfig, original: PretrainedConfig, layers: Sequence[int]) -> None:
    """Rewrite `config`, in place, so that its layer i is layer `layers[i]` of `original`'s.

    Lists with one entry per layer (`layer_types`, `no_rope_layers`) follow their layers. Qwen's
    `max_window_layers` becomes the number of layers before the first with a sliding window.
    """
    text, before = config.get_text_config(decoder=True), original.get_text_config(decoder=True)
    text.num_hidden_layers = len(layers)
    for name in _lists_by_layer(before):
        setattr(text, name, [getattr(before, name)[layer] for layer in layers])
    types = getattr(text, "layer_types", None)
    if types and hasattr(text, "max_window_layers"):
        sliding = [i for i, kind in enumerate(types) if kind == "sliding_attention"]
        text.max_window_layers = sliding[0] if sliding else len(types)


def config_of_path(
    config: PretrainedConfig, layers: Sequence[int], *, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Build the config of a checkpoint whose layer i is layer `layers[i]` of `config`'s.

    Raises:
        InputError: transformers would build other layers from it, as where a pattern is fixed by
            the architecture; names the first difference.
    """
    flags = {"trust_remote_code": trust_remote_code}
    # 1. the config, as it will be read from a file
    made = copy.deepcopy(config)
    try:
        set_layers(made, config, layers)
        made = type(config).from_dict(made.to_dict())
    # Config classes check their values each in their own way, with their own exceptions.
    except Exception as error:
        raise InputError(f"path: the config cannot say it: {reason(error)}") from None
    # 2. each layer of a skeleton built from it, against the layer that it is to hold
    original, built = _layers(config, flags), _layers(made, flags)
    for index, layer in enumerate(layers):
        for problem in _differences(original[layer], built[index]):
            raise InputError(
                f"path: a config of {len(layers)} layers cannot say that layer {index} is the "
                f"model's layer {layer}: {problem}"
            )
    return made


def _layers(config: PretrainedConfig, flags: dict[str, bool]) -> Sequence[nn.Module]:
    model = build_skeleton(config, **flags)
    return list(model.get_submodule(layout_of(model).prefix).children())


def _lists_by_layer(config: PretrainedConfig) -> Iterator[str]:
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == config.num_hidden_layers:
            yield name


def _differences(wanted: nn.Module, built: nn.Module) -> Iterator[str]:
    """Name each way in which two layers differ: modules, shapes, settings such as a window."""
    ours, theirs = dict(wanted.named_modules()), dict(built.named_modules())
    if {n: type(m) for n, m in ours.items()} != {n: type(m) for n, m in theirs.items()}:
        yield "it would be built of other modules"
        return
    for name, module in ours.items():
        if _shapes(module) != _shapes(theirs[name]):
            yield f"{name or 'it'} would have tensors of other shapes"
        settings, found = settings_of(module), settings_of(theirs[name])
        for key in settings:
            if settings[key] != found.get(key):
                place = f"{name}.{key}" if name else key
                yield f"{place} would be {found.get(key)!r}, not {settings[key]!r}"


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in module.named_parameters(recurse=False)}


def settings_of(module: nn.Module) -> dict[str, Any]:
    """Return the plain values that a module holds, such as a window, but its place."""
    plain = (bool, int, float, str, type(None))
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, plain) and not name.startswith("_") and name != _POSITION
    }
