"""Backward passes of a resident model: documents' losses in, one tensor's gradient at a time out.

Documents are read in micro-batches. How many tokens these have is measured: the first, small one
counts the bytes that the graph keeps for its tokens. A document too long for the memory even alone
is read with its layers' activations computed anew in the backward pass (activation checkpointing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from evomerge.common.accelerator import CPU, Accelerator
from evomerge.common.errors import CandidateError
from evomerge.fitness.document_loss import DocumentLoss, Reading
from evomerge.fitness.inference.loglikelihood import LogLikelihoods
from evomerge.fitness.inference.memory import ON_CPU, SHARE

FIRST = 256
"""Tokens of the micro-batch that is measured."""
LEAST = 256 << 20
"""Bytes that a graph may keep on CPU, however small the model."""
PART = 0.65
"""Bytes that a graph may keep on CPU, as a part of a larger model's: fewer take less memory and
more readings of the experts' weights, one a micro-batch (benchmarks/gradient_step.py)."""

Weighted = tuple[DocumentLoss, float]
"""A document's loss, and its factor in the sum that is differentiated."""
Sink = Callable[[Tensor], None]
"""Takes a parameter's gradient, which is gone when it returns."""


class Backward:
    """Differentiates sums of documents' losses in a model's parameters.

    Attributes:
        tokens: of a micro-batch; None until it is measured.
    """

    def __init__(
        self, model: Any, loglikelihoods: LogLikelihoods, layers: str, tokens: int | None = None
    ) -> None:
        """`layers`: the name of the model's list of layers; `tokens`: where they are known."""
        self._model, self._loglikelihoods, self._layers = model, loglikelihoods, layers
        self.tokens = tokens
        self._measured = tokens is not None

    def losses(self, documents: Sequence[DocumentLoss]) -> np.ndarray:
        """Return the losses without a gradient, float64 [documents]; one forward pass.

        Raises:
            CandidateError: one is not finite.
        """
        scored = [i for i, one in enumerate(documents) if one.needs == "loglikelihoods"]
        read = [i for i, one in enumerate(documents) if one.needs != "loglikelihoods"]
        found = {
            **dict(zip(scored, self._scored([documents[i] for i in scored]), strict=True)),
            **dict(zip(read, self._read([documents[i] for i in read]), strict=True)),
        }
        return _finite([found[place] for place in range(len(documents))])

    def _scored(self, documents: Sequence[DocumentLoss]) -> list[Tensor]:
        """The losses of documents that need no more than log-likelihoods."""
        asked = [self._numbers(document) for document in documents]
        answers = iter(self._loglikelihoods.answers([n for own in asked for n in own]))
        found = []
        for document, own in zip(documents, asked, strict=True):
            read = [
                Reading(torch.tensor(next(answers)[0], dtype=torch.float64), self._tokens(number))
                for number in own
            ]
            found.append(document.of(read))
        return found

    def _read(self, documents: Sequence[DocumentLoss]) -> list[Tensor]:
        """The losses of documents that need logits, of one continuation each."""
        asked = [number for document in documents for number in self._numbers(document)]
        of: dict[int, list[int]] = {}
        for place, number in enumerate(asked):
            of.setdefault(number, []).append(place)

        def losses(number: int, reading: Reading) -> dict[int, Tensor]:
            return {place: documents[place].of([reading]).cpu() for place in of[number]}

        found: dict[int, Tensor] = {}
        for one in self._loglikelihoods.each_reading(list(of), losses, self._layer(documents)):
            found |= one
        return [found[place] for place in range(len(documents))]

    def __call__(
        self, documents: Sequence[Weighted], sinks: Sequence[tuple[nn.Parameter, Sink]]
    ) -> np.ndarray:
        """Give each parameter's sink the gradient of Σ factor · loss, micro-batch by micro-batch.

        Returns:
            The losses, float64 [documents].

        Raises:
            CandidateError: a loss is not finite.
        """
        found = np.zeros(len(documents))
        with _differentiated(sinks):
            for places in self._micro_batches([document for document, _ in documents]):
                batch = [documents[place] for place in places]
                found[places] = self._one(batch)
        return found

    def _one(self, batch: Sequence[Weighted]) -> np.ndarray:
        """One forward and one backward pass."""
        documents = [document for document, _ in batch]
        asked = [self._numbers(document) for document in documents]
        numbers = [number for own in asked for number in own]
        tokens = sum(map(self._size, documents))
        cramped = self.tokens is not None and tokens > self.tokens
        with self._counted(tokens), self._checkpointed() if cramped else _as_it_is():
            logits = any(document.needs != "loglikelihoods" for document in documents)
            layer = self._layer(documents)
            read = self._loglikelihoods.differentiable(numbers, logits, layer)
            losses = [
                document.of([read[number] for number in own])
                for document, own in zip(documents, asked, strict=True)
            ]
        found = _finite(losses)
        total = sum(
            (loss * factor for loss, (_, factor) in zip(losses, batch, strict=True)),
            torch.zeros((), device=losses[0].device),
        )
        if total.requires_grad:
            total.backward()
        return found

    def _micro_batches(self, documents: Sequence[DocumentLoss]) -> Iterator[list[int]]:
        """Places of documents of about one length, the longest first, as many as fit."""
        sizes = [self._size(document) for document in documents]
        left = sorted(range(len(documents)), key=lambda place: -sizes[place])
        while left:
            room, taken = self.tokens or FIRST, 0
            count = 0
            while count < len(left) and (count == 0 or taken + sizes[left[count]] <= room):
                taken += sizes[left[count]]
                count += 1
            yield left[:count]
            left = left[count:]

    def _size(self, document: DocumentLoss) -> int:
        """Tokens of a document's rows, as if none began alike."""
        return sum(self._loglikelihoods.length(n)[0] for n in {*self._numbers(document)})

    def _numbers(self, document: DocumentLoss) -> list[int]:
        return [self._loglikelihoods.encode(*pair) for pair in document.pairs]

    def _tokens(self, number: int) -> int:
        return self._loglikelihoods.length(number)[1]

    def _layer(self, documents: Sequence[DocumentLoss]) -> nn.Module | None:
        """The layer whose outputs documents need as hidden states, if they do."""
        if all(document.needs != "hidden" for document in documents):
            return None
        return middle_layer(self._model, self._layers)

    @contextmanager
    def _counted(self, tokens: int) -> Iterator[None]:
        """Around the first forward pass: count what its graph keeps, and size the later ones."""
        if self._measured:
            yield
            return
        own = {p.untyped_storage().data_ptr() for p in self._model.parameters()}
        kept: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(count, lambda tensor: tensor):
            yield
        each = max(1, sum(kept.values()) // max(1, tokens))
        self.tokens = max(1, min(ON_CPU, self._room() // each))
        self._measured = True

    def _room(self) -> int:
        """Bytes that a graph may keep: on CPU by the model's size, on GPUs a share of the free."""
        parameters = list(self._model.parameters())
        gpus = {p.device for p in parameters if p.device.type != CPU}
        if gpus:
            return int(SHARE * min(Accelerator(gpu).memory()[0] for gpu in gpus))
        return max(LEAST, int(PART * sum(p.nbytes for p in parameters)))

    @contextmanager
    def _checkpointed(self) -> Iterator[None]:
        """Let every layer keep its input alone, and compute the rest again when it is needed."""
        layers = list(self._model.get_submodule(self._layers).children())
        before = [layer.__dict__.get("forward") for layer in layers]
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        try:
            yield
        finally:
            for layer, own in zip(layers, before, strict=True):
                del layer.forward
                if own is not None:  # a model on several GPUs has such
                    layer.forward = own


def middle_layer(model: Any, layers: str) -> nn.Module:
    """The layer at which half of the model's layers are done; `layers`: the name of their list."""
    found = list(model.get_submodule(layers).children())
    return found[max(0, len(found) // 2 - 1)]


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _differentiated(sinks: Sequence[tuple[nn.Parameter, Sink]]) -> Iterator[None]:
    """Have the parameters' gradients computed, given to their sinks, and dropped at once."""

    def hook(sink: Sink, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad, None
        sink(gradient)

    handles = []
    try:
        for parameter, sink in sinks:
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(partial(hook, sink)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, _ in sinks:
            parameter.requires_grad_(False)
            parameter.grad = None


def _finite(losses: Sequence[Tensor]) -> np.ndarray:
    """The losses as float64; refuses what is not finite."""
    found = torch.stack([loss.detach() for loss in losses]).cpu().double().numpy()
    if not np.isfinite(found).all():
        raise CandidateError(f"a document's loss came out as {found[~np.isfinite(found)][0]}")
    return found
