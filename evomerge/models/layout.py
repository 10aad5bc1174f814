"""Derive a decoder's layout: each tensor's layer and module, and the weights that are tied.

A layout is derived from the config alone, by reading the tensor names of a skeleton without
weights. It fits any decoder whose layers sit in one numbered list; no architecture is named here.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from evomerge.common.errors import InputError
from evomerge.models.messages import reason

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

GROUPS = ("embeddings", "final_norm", "head")
"""The groups of tensors outside the layers."""

MODULES = ("attention", "mlp", "router", "norms", "other")
"""The groups of tensors inside a layer."""

_NUMBERED = re.compile(r"^(?P<prefix>.+?)\.(?P<index>\d+)\.(?P<suffix>.+)$")
_NORM = re.compile(r"norm|(^|[_.])ln(?![a-z])")
_ATTENTION = re.compile(r"attn|attention")
_MLP = re.compile(r"mlp|feed_?forward|ffn|experts|moe|router")
_ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)\.")
_EMBEDDING = re.compile(r"emb|wpe")


@dataclass(frozen=True)
class TensorSpec:
    """One stored weight and its place in the model.

    Attributes:
        name: canonical name, the `state_dict` key of the transformers model built from the config.
        shape: as stored.
        layer: index in the numbered list, None outside it.
        group: one of `MODULES` inside a layer, one of `GROUPS` outside.
        suffix: the name within its layer (`self_attn.q_proj.weight`); the whole name outside.
        vocab_dim: 0 where dimension 0 counts the vocabulary (embeddings, head), else None.
        matrices: how many matrices lie behind each other in the tensor; over 1 where the experts
            of a mixture are stacked.
        transposed: rows are the inputs, as in GPT-2's `Conv1D`, not the columns.
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None
    group: str
    suffix: str
    vocab_dim: int | None
    matrices: int = 1
    transposed: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of a recipe's merge that this tensor is in, the finest first.

        Those are its suffix, its module, the whole layer; outside the layers its group alone.
        """
        return (self.group,) if self.layer is None else (self.suffix, self.group, "layer")


@dataclass(frozen=True)
class Layout:
    """The tensors of one architecture at one size.

    Attributes:
        architecture: class name of the model, `LlamaForCausalLM`.
        layers: length of the numbered list.
        prefix: the numbered list's name: `model.layers`, `transformer.h`, `gpt_neox.layers`.
        tensors: every stored weight once, without tied duplicates, in `state_dict` order.
        tied: tied name -> the name it shares storage with.
        vocab_size: rows of the input embedding.
    """

    architecture: str
    layers: int
    prefix: str
    tensors: tuple[TensorSpec, ...]
    tied: Mapping[str, str]
    vocab_size: int

    @cached_property
    def _by_name(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.tensors}

    @cached_property
    def _by_layer(self) -> dict[int, tuple[TensorSpec, ...]]:
        specs = defaultdict(list)
        for spec in self.tensors:
            if spec.layer is not None:
                specs[spec.layer].append(spec)
        return {layer: tuple(found) for layer, found in specs.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of all tensors, in `state_dict` order."""
        return tuple(self._by_name)

    @property
    def parameters(self) -> int:
        """How many numbers all tensors hold."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def with_vocabulary(self, rows: int) -> Layout:
        """Return the same layout with another number of vocabulary rows."""
        tensors = tuple(
            spec if spec.vocab_dim is None else replace(spec, shape=(rows, *spec.shape[1:]))
            for spec in self.tensors
        )
        return replace(self, tensors=tensors, vocab_size=rows)

    def tensors_of_layer(self, layer: int) -> tuple[TensorSpec, ...]:
        """Return one layer's tensors, in `state_dict` order.

        Raises:
            InputError: there is no such layer.
        """
        if not 0 <= layer < self.layers:
            raise InputError(
                f"layer {layer}: {self.architecture} has layers 0 to {self.layers - 1} here"
            )
        return self._by_layer[layer]

    def tensor(self, name: str) -> TensorSpec:
        """Return the tensor of a canonical name; a tied name gives the one that it shares.

        Raises:
            InputError: the model has no tensor of that name.
        """
        spec = self._by_name.get(self.tied.get(name, name))
        if spec is None:
            raise InputError(f"{name}: {self.architecture} has no tensor of this name")
        return spec

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The groups that occur inside layers, in the order of `MODULES`."""
        found = {spec.group for spec in self.tensors if spec.layer is not None}
        return tuple(group for group in MODULES if group in found)

    @cached_property
    def outside_groups(self) -> tuple[str, ...]:
        """The groups that occur outside layers, in the order of `GROUPS`; a tied head is none."""
        found = {spec.group for spec in self.tensors if spec.layer is None}
        return tuple(group for group in GROUPS if group in found)


def derive_layout(config: PretrainedConfig, *, trust_remote_code: bool = False) -> Layout:
    """Derive the layout of the model that transformers builds from `config`, without its weights.

    Raises:
        InputError: transformers cannot build a decoder from the config, or its layers do not sit
            in exactly one numbered list of the config's length.
    """
    return layout_of(build_skeleton(config, trust_remote_code=trust_remote_code))


def build_skeleton(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build transformers' model of `config` on the meta device, without weights.

    Raises:
        InputError: transformers cannot build a decoder from the config.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    # Whatever the architecture's own code raises, the cause is the config the user gave.
    except Exception as error:
        raise InputError(
            f"transformers cannot build a decoder from this config: {reason(error)}"
        ) from None


def layout_of(model: PreTrainedModel) -> Layout:
    """Read the layout off a model, or a skeleton of one.

    Raises:
        InputError: its layers do not sit in exactly one numbered list of the config's length.
    """
    from transformers.pytorch_utils import Conv1D

    from evomerge.models.files.conversion import stacks_of

    # 1. every weight once; tied ones share a tensor
    tensors, tied = unshared(model.state_dict(keep_vars=True))
    # 2. the numbered list of layers
    architecture = type(model).__name__
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    prefix = _numbered_list(tensors, depth, architecture)
    # 3. the ends: input embedding and head
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        raise InputError(f"{architecture}: not a language model with embeddings and a head")
    vocab_size = int(embedding.weight.shape[0])
    owners = {id(weight): "head" for weight in head.parameters()}
    owners |= {id(weight): "embeddings" for weight in embedding.parameters()}
    # 4. experts stacked in one tensor
    stacks = stacks_of(model, {name: tuple(weight.shape) for name, weight in tensors.items()})
    # 5. layers that store their matrix the other way round
    turned = {f"{name}.weight" for name, one in model.named_modules() if isinstance(one, Conv1D)}
    return Layout(
        architecture=architecture,
        layers=depth,
        prefix=prefix,
        tensors=tuple(
            replace(
                _spec(name, weight, prefix, owners.get(id(weight)), vocab_size),
                matrices=stacks.get(name, 1),
                transposed=name in turned,
            )
            for name, weight in tensors.items()
        ),
        tied=tied,
        vocab_size=vocab_size,
    )


def unshared(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return each weight under its first name, and tied name → the first name of its weight."""
    first: dict[int, str] = {}
    tied = {}
    for name, weight in state.items():
        owner = first.setdefault(id(weight), name)
        if owner != name:
            tied[name] = owner
    return {name: state[name] for name in first.values()}, tied


def _numbered_list(names: Iterable[str], depth: int, architecture: str) -> str:
    """Find the one prefix under which tensors are numbered 0 to depth - 1."""
    indices = defaultdict(set)
    for name in names:
        if match := _NUMBERED.match(name):
            indices[match["prefix"]].add(int(match["index"]))
    if len(indices) != 1:
        found = ", ".join(sorted(indices)) or "none"
        raise InputError(
            f"{architecture}: layers must sit in one numbered list; found {found}. "
            "Only decoders without a second stack of layers can be merged"
        )
    [(prefix, numbers)] = indices.items()
    if numbers != set(range(depth)):
        raise InputError(
            f"{architecture}: {prefix} is numbered {min(numbers)} to {max(numbers)}, "
            f"while the config names {depth} layers"
        )
    return prefix


def _spec(name: str, weight: Tensor, prefix: str, owner: str | None, vocab_size: int) -> TensorSpec:
    shape = tuple(weight.shape)
    if owner is None and name.startswith(f"{prefix}."):
        index, _, suffix = name.removeprefix(f"{prefix}.").partition(".")
        return TensorSpec(name, shape, int(index), _module(suffix), suffix, None)
    group = owner or _outside(name)
    counts_vocabulary = owner is not None and shape[:1] == (vocab_size,)
    return TensorSpec(name, shape, None, group, name, 0 if counts_vocabulary else None)


def _module(suffix: str) -> str:
    """Find the module of a tensor by its first component: `self_attn.q_norm` is attention.

    The router of a mixture of experts is a module of its own.
    """
    first = suffix.partition(".")[0].lower()
    if _NORM.search(first):  # before attention: post_attention_layernorm
        return "norms"
    if _ATTENTION.search(first):
        return "attention"
    if not _MLP.search(first):
        return "other"
    return "router" if _ROUTER.search(suffix) else "mlp"


def _outside(name: str) -> str:
    """Find the group of a tensor outside the layers that is neither input embedding nor head.

    Position embeddings and norms of embeddings are embeddings; another norm is the final one.
    """
    is_final = _NORM.search(name.lower()) and not _EMBEDDING.search(name.lower())
    return "final_norm" if is_final else "embeddings"
