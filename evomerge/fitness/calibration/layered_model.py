"""A model that is run one layer at a time, with one layer's weights in memory.

Every pass goes through the model's own forward, its list of layers cut down to the one that is run,
so that masks, positions and all else that a layer is given are the architecture's own. The caller
holds the hidden states between layers. An architecture whose layers are no chain, each fed by the
one before alone, gives other logits so than as a whole: that is tried before any work, and refused.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from evomerge.common.errors import InputError
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.layout import TensorSpec
from evomerge.models.messages import reason
from evomerge.models.path_config import set_layers

TRIED = 32
"""Tokens on which a model as a whole and layer by layer are compared."""


class _Stop(Exception):  # noqa: N818
    """Ends a forward pass once it has what it was run for."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@dataclass
class _Pass:
    """What the layer's stand-in does: give its input back, run on `hidden`, or give `hidden`."""

    kind: str
    hidden: Tensor | None = None


class LayeredModel:
    """A causal language model; its passes may be run in several threads at once.

    Tensors outside the layers (embeddings, final norm, head) are always in memory.

    Attributes:
        source: what it is read from.
        name: the model's, for messages.
        layers: how many there are.
        hidden_size: numbers of a token between layers.
    """

    def __init__(
        self,
        source: Checkpoint,
        name: str,
        tokens: Tensor,
        *,
        device: str = "cpu",
        trust_remote_code: bool = False,
    ) -> None:
        """Build the model, and try whether it can be run layer by layer.

        Args:
            name: for messages.
            tokens: int64 [tokens], a text to try it on.

        Raises:
            InputError: it cannot; names the architecture.
        """
        self.source, self.name, self.device = source, name, torch.device(device)
        self._layout = source.layout
        with no_init_weights():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                copy.deepcopy(source.config),
                dtype=torch.float32,
                trust_remote_code=trust_remote_code,
            )
        model.tie_weights()
        self.model = model.eval().requires_grad_(False)
        self._tensors = model.state_dict(keep_vars=True)
        parent, _, self._attribute = self._layout.prefix.rpartition(".")
        self._parent = model.get_submodule(parent)
        self.modules = dict(model.named_modules())
        self._layers = list(model.get_submodule(self._layout.prefix).children())
        self.layers = len(self._layers)
        # 1. layers stand aside until they are loaded
        for index, module in enumerate(self._layers):
            module.forward = partial(self._stand_in, index, module.forward)
            self._free(index)
        model.to(self.device)
        self._fill([spec for spec in self._layout.tensors if spec.layer is None])
        self._now = threading.local()
        self._tuples = False
        # 2. as a whole and layer by layer
        self.hidden_size = 0
        self._try(tokens[:TRIED])

    @property
    def architecture(self) -> str:
        """The name of the model's class."""
        return self._layout.architecture

    @property
    def outside(self) -> dict[str, nn.Parameter]:
        """Canonical name → parameter, of those outside the layers."""
        return self._parameters(spec for spec in self._layout.tensors if spec.layer is None)

    def inside(self, layer: int) -> dict[str, nn.Parameter]:
        """Canonical name → parameter, of a layer that is loaded."""
        return self._parameters(iter(self._layout.tensors_of_layer(layer)))

    def _parameters(self, specs: Iterator[TensorSpec]) -> dict[str, nn.Parameter]:
        found = {spec.name: self._tensors[spec.name] for spec in specs}
        return {name: one for name, one in found.items() if isinstance(one, nn.Parameter)}

    @contextmanager
    def loaded(self, layer: int) -> Iterator[None]:
        """Hold a layer's weights in memory within, and let passes run through it alone."""
        self._wire([layer])
        self._fill(self._layout.tensors_of_layer(layer))
        try:
            yield
        finally:
            self._free(layer)

    def first(self, tokens: Tensor) -> Tensor:
        """Return what enters the first layer, [1, tokens, hidden]; `tokens`: int64 [tokens]."""
        return self._run(tokens, _Pass("enter"))

    def through(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Return what leaves the loaded layer, [1, tokens, hidden], for what enters it."""
        return self._run(tokens, _Pass("layer", hidden.to(self.device)))

    def logits(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Return the logits, [tokens, vocabulary], for what leaves the last layer."""
        return self._run(tokens, _Pass("given", hidden.to(self.device)))[0]

    def _run(self, tokens: Tensor, wanted: _Pass) -> Tensor:
        self._now.wanted = wanted
        try:
            return self.model(tokens[None].to(self.device), use_cache=False).logits
        except _Stop as stop:
            return stop.hidden

    def _stand_in(
        self, index: int, own: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor | tuple[Tensor]:
        """Stand in for a layer's forward."""
        wanted = self._now.wanted
        if wanted.kind == "whole":
            self._fill(self._layout.tensors_of_layer(index))
            found = own(*args, **kwargs)
            self._tuples = isinstance(found, tuple)
            self._free(index)
            return found
        if wanted.kind == "enter":
            raise _Stop(args[0] if args else kwargs["hidden_states"])
        if wanted.kind == "given":
            return (wanted.hidden,) if self._tuples else wanted.hidden
        given = (wanted.hidden, *args[1:])
        if not args:
            given, kwargs = (), {**kwargs, "hidden_states": wanted.hidden}
        found = own(*given, **kwargs)
        raise _Stop(found[0] if isinstance(found, tuple) else found)

    def _wire(self, layers: Sequence[int]) -> None:
        """Make the model run through these layers."""
        modules = nn.ModuleList([self._layers[layer] for layer in layers])
        setattr(self._parent, self._attribute, modules)
        set_layers(self.model.config, self.source.config, layers)

    @torch.no_grad()
    def _fill(self, specs: Sequence[TensorSpec]) -> None:
        """Read tensors, each into memory of its own: mapped ones may lie askew in their files."""
        for spec in specs:
            tensor = self._tensors[spec.name]
            read = self.source.read(spec.name)
            if tensor.dtype.is_floating_point:
                read = read.to(torch.float32)
            tensor.data = torch.empty(read.shape, dtype=read.dtype, device=self.device).copy_(read)

    def _free(self, layer: int) -> None:
        for spec in self._layout.tensors_of_layer(layer):
            tensor = self._tensors[spec.name]
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)

    @torch.no_grad()
    def _try(self, tokens: Tensor) -> None:
        """Compare logits of the model as a whole and layer by layer.

        Raises:
            InputError: they differ, or it fails; names the architecture.
        """
        refused = f"{self.name}: {self.architecture} is not calibrated here"
        way_out = "name methods that need no data, or give statistics from elsewhere"
        try:
            self._wire(range(self.layers))
            whole = self._run(tokens, _Pass("whole"))[0]
            hidden = self.first(tokens)
            for layer in range(self.layers):
                with self.loaded(layer):
                    hidden = self.through(tokens, hidden)
            found = self.logits(tokens, hidden)
        # Whatever the architecture's own code makes of layers that are run one by one.
        except Exception as error:
            raise InputError(f"{refused}: {reason(error)}; {way_out}") from error
        self.hidden_size = hidden.shape[-1]
        exact = self.device.type == "cpu"
        alike = torch.equal if exact else partial(torch.allclose, rtol=1e-3, atol=1e-3)
        if not torch.isfinite(whole).all():
            raise InputError(
                f"{self.name}: its logits are not finite on the first of the "
                "texts; give a model that works"
            )
        if hidden.ndim != 3 or not alike(whole, found):
            raise InputError(
                f"{refused}: run layer by layer it says something else than as a whole, because "
                f"its layers are no chain; {way_out}"
            )
