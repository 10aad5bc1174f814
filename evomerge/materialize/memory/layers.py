"""The layers of a resident model: weights stored once, wired into any path without a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from evomerge.materialize.plan import TensorStep
from evomerge.models.layout import Layout
from evomerge.models.path_config import set_layers
from evomerge.recipe.recipe import Slot

T = TypeVar("T")
WeightKey = tuple[str, int]
"""What a weight is made of: the source that it is a copy of, and 0; or the rule's text, and the
recipe's seed. A weight has the same bytes whenever it is made of the same."""
LayerKey = dict[str, WeightKey]
"""What a layer's weights are made of, by their names within the layer."""


def weight_key(step: TensorStep, seed: int) -> WeightKey:
    """Return the key of the weight that a step makes."""
    fewer = "" if step.mixture is None else f"; {step.mixture[1]!r}"
    if step.rule is None:
        return f"copy of {step.source}{fewer}", 0
    return f"{step.rule.text}{fewer}", seed


def layer_key(steps: Sequence[TensorStep], seed: int) -> LayerKey:
    """Return the key of a slot's weights; slots with equal keys have the same weights."""
    return {step.tensor.suffix: weight_key(step, seed) for step in steps}


class Weights:
    """Weights of a model, and what they are made of now.

    Attributes:
        tensors: name → the weight.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over weights of which nothing is known."""
        self.tensors = tensors
        self._made: dict[str, tuple[WeightKey, int]] = {}

    def holds(self, name: str, key: WeightKey) -> bool:
        """Say whether a weight is made of this, and nobody's code has changed it since."""
        return self._made.get(name) == (key, self.tensors[name]._version)

    def forget(self, name: str) -> None:
        """Note that a weight is about to be written: until `remember` nothing is known of it."""
        self._made.pop(name, None)

    def remember(self, name: str, key: WeightKey) -> None:
        """Note what a weight was made of, and torch's count of its changes in place.

        torch does not count what is written through `.data`, as candidates are.
        """
        self._made[name] = key, self.tensors[name]._version


class LayerWeights(Weights):
    """The weights of one layer, and modules that share them, each with its own part of the cache.

    Attributes:
        tensors: name within the layer → the weight.
        module: the layer.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take over a layer."""
        super().__init__(module.state_dict(keep_vars=True))
        self.module = module
        self._views = [module]
        self._whole: dict[str, Tensor] = {}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Cut tensors to their first entries, in the memory that the whole ones have.

        Args:
            sizes: name within the layer → how many; tensors without one are whole.
        """
        for name in sizes:
            self._whole.setdefault(name, self.tensors[name].data)
        for name, whole in self._whole.items():
            self.tensors[name].data = whole[: sizes.get(name)]

    def common(self, key: LayerKey) -> int:
        """Return the bytes of the weights that need not be written where these are wanted."""
        return sum(self.tensors[name].nbytes for name, own in key.items() if self.holds(name, own))

    def has(self, key: LayerKey) -> bool:
        """Say whether no weight need be written where these are wanted."""
        return all(self.holds(name, own) for name, own in key.items())

    def view(self, number: int, config: PretrainedConfig) -> nn.Module:
        """Return the `number`-th module over these weights, made when it is first asked for."""
        while len(self._views) <= number:
            self._views.append(_copied(self.module, config, share=True))
        return self._views[number]


class Layers:
    """Takes over a model's list of layers, and rewires it for every candidate.

    A layer module is made for one index of the original model (its attention type, its window) and
    stays that layer wherever it stands. Weights are kept from candidate to candidate, so that those
    that are still there are not written again; the number of layers grows to what one candidate
    needs at once, not with the number of candidates.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout, config: PretrainedConfig) -> None:
        """Take over `model.config`, which changes with every path; `config` is the original."""
        self._prefix = layout.prefix
        parent, _, self._attribute = layout.prefix.rpartition(".")
        self._parent = model.get_submodule(parent)
        self._config = model.config
        self._original = config
        modules = list(model.get_submodule(layout.prefix).children())
        self._weights = {layer: [LayerWeights(module)] for layer, module in enumerate(modules)}
        self._wired: tuple[int, ...] = tuple(range(len(modules)))
        self._hooks: list[Any] = []

    def assign(self, layers: Sequence[int], keys: Sequence[LayerKey]) -> list[LayerWeights]:
        """Return the weights of each slot, the same ones for slots with equal keys.

        The caller writes what they do not hold of the slots' keys.

        Args:
            layers: of each slot, its layer's index in the original model.
            keys: of each slot, the key of its weights.
        """
        for hook in self._hooks:  # before any module is copied
            hook.remove()
        wanted: dict[int, list[LayerKey]] = {}
        for layer, key in zip(layers, keys, strict=True):
            if key not in wanted.setdefault(layer, []):
                wanted[layer].append(key)
        chosen = {layer: self._choose(layer, distinct) for layer, distinct in wanted.items()}
        return [
            chosen[layer][wanted[layer].index(key)] for layer, key in zip(layers, keys, strict=True)
        ]

    def _choose(self, layer: int, distinct: list[LayerKey]) -> list[LayerWeights]:
        """Return weights for each key: those that have it, else those with the most of it.

        Of equals it takes those longest out of use.
        """
        free, chosen = list(self._weights[layer]), {}
        # 1. weights that are there as they are wanted
        for index, key in enumerate(distinct):
            found = next((one for one in free if one.has(key)), None)
            if found is not None:
                free.remove(found)
                chosen[index] = found
        # 2. for the other keys those of which the least must be written, or new ones
        for index, key in enumerate(distinct):
            if index not in chosen and free:
                chosen[index] = max(free, key=lambda one: one.common(key))
                free.remove(chosen[index])
            elif index not in chosen:
                chosen[index] = self._new(layer)
        ordered = [chosen[index] for index in range(len(distinct))]
        self._weights[layer] = [*free, *ordered]  # in the order of their last use
        return ordered

    def _new(self, layer: int) -> LayerWeights:
        return LayerWeights(_copied(self._weights[layer][0].module, self._config, share=False))

    def cut(self, sizes: Mapping[str, int], settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Cut tensors of all layers to their first entries, and set what their modules say of it.

        Args:
            sizes: canonical name → how many; tensors without one are whole.
            settings: module's name → its attributes.
        """
        for layer, weights in self._weights.items():
            start = f"{self._prefix}.{layer}."
            for one in weights:
                one.cut(_within(start, sizes))
                for name, own in _within(start, settings).items():
                    set_attributes(one.module.get_submodule(name), own)

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


def set_attributes(module: nn.Module, values: Mapping[str, Any]) -> None:
    """Set a module's plain attributes."""
    for name, value in values.items():
        setattr(module, name, value)


def _within(start: str, values: Mapping[str, T]) -> dict[str, T]:
    """Return the values whose names begin so, by the rest of their names."""
    return {name.removeprefix(start): v for name, v in values.items() if name.startswith(start)}


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
