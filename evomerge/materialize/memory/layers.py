"""The layers of a resident model: weights stored once, wired into any path without a copy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from evomerge.materialize.plan import MergeRule, TensorStep
from evomerge.models.layout import Layout
from evomerge.models.path_config import set_layers
from evomerge.recipe.recipe import Slot

WeightKey = tuple[tuple[str, str | None, MergeRule | None, int], ...]
"""What a layer's weights are made of: (tensor, source if it is a copy, rule, seed) for each."""


def weight_key(steps: Sequence[TensorStep], seed: int) -> WeightKey:
    """Return the key of a slot's weights; slots with equal keys have the same weights."""
    return tuple((s.tensor.name, None if s.rule else s.source, s.rule, seed) for s in steps)


@dataclass
class LayerWeights:
    """The weights of one layer, and modules that share them, each with its own part of the cache.

    Attributes:
        key: of the weights as they are now; None while they are being written.
        tensors: name within the layer → the weight.
    """

    module: nn.Module
    key: WeightKey | None = None
    tensors: dict[str, Tensor] = field(init=False)
    _views: list[nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = self.module.state_dict(keep_vars=True)
        self._views = [self.module]

    def view(self, number: int, config: PretrainedConfig) -> nn.Module:
        """Return the `number`-th module over these weights, made when it is first asked for."""
        while len(self._views) <= number:
            self._views.append(_copied(self.module, config, share=True))
        return self._views[number]


class Layers:
    """Takes over a model's list of layers, and rewires it for every candidate.

    A layer module is made for one index of the original model (its attention type, its window) and
    stays that layer wherever it stands. Weights are kept from candidate to candidate, so that those
    that are still there are not written again; their number grows to what one candidate needs at
    once, not with the number of candidates.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout, config: PretrainedConfig) -> None:
        """Take over `model.config`, which changes with every path; `config` is the original."""
        parent, _, self._attribute = layout.prefix.rpartition(".")
        self._parent = model.get_submodule(parent)
        self._config = model.config
        self._original = config
        modules = list(model.get_submodule(layout.prefix).children())
        self._weights = {layer: [LayerWeights(module)] for layer, module in enumerate(modules)}
        self._wired: tuple[int, ...] = tuple(range(len(modules)))
        self._hooks: list[Any] = []

    def assign(self, layers: Sequence[int], keys: Sequence[WeightKey]) -> list[LayerWeights]:
        """Return the weights of each slot, the same ones for slots with equal keys.

        The caller writes those whose `key` is not the slot's.

        Args:
            layers: of each slot, its layer's index in the original model.
            keys: of each slot, the key of its weights.
        """
        for hook in self._hooks:  # before any module is copied
            hook.remove()
        wanted: dict[int, list[WeightKey]] = {}
        for layer, key in zip(layers, keys, strict=True):
            if key not in wanted.setdefault(layer, []):
                wanted[layer].append(key)
        chosen = {layer: self._choose(layer, distinct) for layer, distinct in wanted.items()}
        return [
            chosen[layer][wanted[layer].index(key)] for layer, key in zip(layers, keys, strict=True)
        ]

    def _choose(self, layer: int, distinct: list[WeightKey]) -> list[LayerWeights]:
        """Return weights for each key: those that have it, else those longest out of use."""
        there = self._weights[layer]
        kept = {distinct.index(one.key): one for one in there if one.key in distinct}
        free = [one for one in there if not any(one is k for k in kept.values())]
        for index in range(len(distinct)):
            if index not in kept:
                kept[index] = free.pop(0) if free else self._new(layer)
        chosen = [kept[index] for index in range(len(distinct))]
        self._weights[layer] = [*free, *chosen]  # in the order of their last use
        return chosen

    def _new(self, layer: int) -> LayerWeights:
        return LayerWeights(_copied(self._weights[layer][0].module, self._config, share=False))

    def wire(self, weights: Sequence[LayerWeights], path: Sequence[Slot]) -> None:
        """Make the model run through the slots' layers, each slot's input times its scale."""
        # weights that several slots share have a module for each, with its own part of the cache
        used: dict[int, int] = {}
        modules = []
        for one in weights:
            number = used[id(one)] = used.get(id(one), -1) + 1
            modules.append(one.view(number, self._config))
        if [*self._parent.get_submodule(self._attribute).children()] != modules:
            setattr(self._parent, self._attribute, nn.ModuleList(modules))
        for index, module in enumerate(modules):
            _set_index(module, index)
        layers = tuple(slot.layer for slot in path)
        if layers != self._wired:
            set_layers(self._config, self._original, layers)
            self._wired = layers
        self._hooks = [
            module.register_forward_pre_hook(_Scaled(slot.scale), with_kwargs=True)
            for module, slot in zip(modules, path, strict=True)
            if slot.scale != 1
        ]


@dataclass(frozen=True)
class _Scaled:
    """Multiplies the hidden states that enter a layer, [batch, positions, hidden]."""

    scale: float

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0] * self.scale, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * self.scale}


def _copied(module: nn.Module, config: PretrainedConfig, share: bool) -> nn.Module:
    """Return a copy with the same config objects and, if `share`, the same weights and buffers."""
    kept: list[Any] = [config, config.get_text_config(decoder=True)]
    kept += [found for m in module.modules() if (found := getattr(m, "config", None)) is not None]
    if share:
        kept += [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(value): value for value in kept})


def _set_index(module: nn.Module, index: int) -> None:
    """Give a layer the part of the KV cache at `index`."""
    for part in module.modules():
        if getattr(part, "layer_idx", None) is not None:
            part.layer_idx = index  # type: ignore[assignment]
