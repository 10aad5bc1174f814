"""Statistics of gradients: the diagonal empirical Fisher information, g ⊙ θ, sensitivities.

The loss of a text is the sum over its tokens, from the second on, of minus the log-probability of
the token after those before it, in nats. With g its gradient in a tensor, `fisher/TENSOR` is the
mean over texts of g², float32 of the tensor's shape (Matena & Raffel 2021, arXiv:2111.09832, with
the texts' own tokens in the place of an expectation over the model's). Gradients are of one text at
a time, and squared before the mean. `gtheta/TENSOR` is g ⊙ θ, float32 [texts, *shape], of the first
`SINGLE` texts, and `sens/TENSOR` the mean over all texts of Σ |g ⊙ θ| over the tensor, float64 [1]
(Sens-Merging's; Liu et al. 2025, arXiv:2502.12420).

Gradients are computed layer by layer, from hidden states that a forward pass has left between all
layers, so that one layer's weights, sums and gradients are in memory, whatever the model's depth.
Texts go in groups, so that those states fit `STATES` bytes of disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from evomerge.fitness.calibration.forward_pass import check_finite
from evomerge.fitness.calibration.in_order import InOrder, in_threads
from evomerge.fitness.calibration.layered_model import LayeredModel
from evomerge.fitness.calibration.work_folder import States, WorkFolder

STATES = 4 << 30
"""Bytes of hidden states on disk, or those of `SINGLE` texts where these are more."""
SINGLE = 8
"""Texts whose g ⊙ θ is kept."""
_ENDS = "ends"


def group_size(layers: int, hidden: int, tokens: int) -> int:
    """Count the texts of at most so many tokens whose states are kept at a time."""
    return max(SINGLE, STATES // ((layers + 3) * hidden * tokens * 4))


class _Sums:
    """Σ g² and Σ |g ⊙ θ| over texts, and g ⊙ θ of the first; added to in the texts' order."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], kinds: Sequence[str], before: dict[str, Tensor]
    ) -> None:
        """`before`: the sums over earlier groups, by their keys."""
        self._parameters, self._kinds = parameters, kinds
        self.found = {key: tensor.clone() for key, tensor in before.items()}

    def add(self, text: int, gradients: Sequence[Tensor | None], order: InOrder, turn: int) -> None:
        """Add a text's gradients, in the parameters' order; None is zero."""
        for (name, parameter), gradient in zip(self._parameters.items(), gradients, strict=True):
            g = torch.zeros_like(parameter) if gradient is None else gradient
            with order.turn(name, turn), torch.no_grad():
                if "fisher" in self._kinds:
                    key = f"fisher/{name}"
                    if key not in self.found:
                        self.found[key] = torch.zeros_like(parameter)
                    self.found[key] = self.found[key].to(g.device).addcmul_(g, g)
                if "gtheta" in self._kinds and text < SINGLE:
                    key, own = f"gtheta/{name}", (g * parameter)[None].cpu()
                    one = [self.found[key]] if key in self.found else []
                    self.found[key] = torch.cat([*one, own])

                if "sens" in self._kinds:
                    key, own = f"sens/{name}", (g * parameter).abs().cpu().sum(dtype=torch.float64)
                    self.found[key] = own.reshape(1) + self.found.get(key, 0.0)

    def part(self, count: int) -> dict[str, Tensor]:
        """The sums to be kept, those over all texts divided by `count`."""
        for key in self.found:
            if key.startswith(("fisher/", "sens/")):
                self.found[key] /= count
        return {key: tensor.detach().cpu() for key, tensor in self.found.items()}


def take_gradients(
    model: LayeredModel,
    texts: Sequence[Tensor],
    kinds: Sequence[str],
    work: WorkFolder,
    threads: int,
    told: Callable[[str], None],
) -> dict[str, Tensor]:
    """Take `fisher`, `gtheta` and `sens` of all tensors: two forward passes, one backward pass.

    A process that was killed loses the layer that it was in.

    Args:
        texts: int64 [tokens] each, of two tokens at least.
        threads: how many texts are run at once.
        told: is told of each layer.

    Returns:
        the statistics, mapped, by their keys.

    Raises:
        InputError: one is not finite; names the model and the tensor.
    """
    most = group_size(model.layers, model.hidden_size, max(map(len, texts)))
    starts = range(0, len(texts), most)
    for group, start in enumerate(starts):
        if not any(work.has(_part(_ENDS, later)) for later in range(group, len(starts))):
            places = range(start, min(start + most, len(texts)))
            _Group(model, texts, places, group, kinds, work, threads, told).run()
    found: dict[str, Tensor] = {}
    for place in (*range(model.layers), _ENDS):
        found |= work.part(_part(place, len(starts) - 1))
    return found


def _part(place: int | str, group: int) -> str:
    return f"gradients-of-{place}-after-{group}"


class _Group:
    """Some of the texts, on their way to the last layer and back."""

    def __init__(
        self,
        model: LayeredModel,
        texts: Sequence[Tensor],
        places: range,
        group: int,
        kinds: Sequence[str],
        work: WorkFolder,
        threads: int,
        told: Callable[[str], None],
    ) -> None:
        self._model, self._kinds, self._work, self._threads = model, kinds, work, threads
        self._texts, self._places, self._group, self._told = texts, places, group, told
        self._lengths = [len(texts[place]) for place in places]
        self._label = f"{', '.join(kinds)}, texts {places.start + 1} to {places.stop}"

    def run(self) -> None:
        """Add the group's gradients to the parts."""
        model, work = self._model, self._work
        top = model.layers
        # 1. hidden states between the layers, kept for the way back
        self._once("states-0", self._enter)
        for layer in range(top):
            if self._once(f"states-{layer + 1}", partial(self._forward, layer)):
                self._told(f"{self._label}: forward through layer {layer + 1} of {top}")
        # 2. gradients in what leaves the last layer, then in what enters each; a layer's sums are
        #    kept before the gradients that it came from are dropped
        if not self._done(top - 1):
            self._once(f"slopes-{top}", self._loss)
        for layer in reversed(range(top)):
            if self._done(layer):
                continue
            self._back(layer)
            work.drop(f"slopes-{layer + 1}")
            self._told(f"{self._label}: back through layer {layer + 1} of {top}")
        # 3. embeddings, final norm and head; a weight that two of them share has one gradient
        self._ends()
        for layer in range(top + 1):
            work.drop(f"states-{layer}")
        work.drop("slopes-0")

    def _once(self, name: str, make: Callable[[States], None]) -> bool:
        """Make states that are not there; return whether they were not."""
        if self._work.has(name):
            return False
        with self._work.writing(name, self._lengths, self._model.hidden_size) as states:
            make(states)
        return True

    def _states(self, name: str) -> States:
        return self._work.states(name, self._lengths, self._model.hidden_size)

    def _done(self, place: int | str) -> bool:
        return self._work.has(_part(place, self._group))

    def _each(self, work: Callable[[int, Tensor, InOrder], None]) -> None:
        """Call `work(index in the group, text, order)` for every text."""
        texts = [self._texts[place] for place in self._places]
        in_threads(work, texts, self._threads)

    def _enter(self, after: States) -> None:
        with torch.no_grad():
            for index, place in enumerate(self._places):
                after.write(index, self._model.first(self._texts[place]))

    def _forward(self, layer: int, after: States) -> None:
        before = self._states(f"states-{layer}")

        def one(index: int, text: Tensor, order: InOrder) -> None:
            with torch.no_grad():
                after.write(index, self._model.through(text, before.read(index)))

        with self._model.loaded(layer):
            self._each(one)

    def _loss(self, slopes: States) -> None:
        last = self._states(f"states-{self._model.layers}")

        def one(index: int, text: Tensor, order: InOrder) -> None:
            hidden = last.read(index).to(self._model.device).requires_grad_()
            loss = _loss(self._model.logits(text, hidden), text)
            slopes.write(index, torch.autograd.grad(loss, hidden)[0])

        self._each(one)

    def _back(self, layer: int) -> None:
        before = self._states(f"states-{layer}")
        above = self._states(f"slopes-{layer + 1}")
        model = self._model
        with model.loaded(layer):
            parameters = model.inside(layer)
            sums = self._sums(layer, parameters)

            def one(index: int, text: Tensor, order: InOrder) -> None:
                hidden = before.read(index).to(model.device).requires_grad_()
                out = model.through(text, hidden)
                slope, *gradients = torch.autograd.grad(
                    out,
                    [hidden, *parameters.values()],
                    above.read(index).to(model.device),
                    allow_unused=True,
                )
                below.write(index, slope)
                sums.add(self._places[index], gradients, order, index)

            with (
                _differentiated(parameters),
                self._work.writing(f"slopes-{layer}", self._lengths, model.hidden_size) as below,
            ):
                self._each(one)
        self._keep(layer, sums)

    def _ends(self) -> None:
        model, parameters = self._model, self._model.outside
        last, slopes = self._states(f"states-{model.layers}"), self._states("slopes-0")
        sums = self._sums(_ENDS, parameters)

        def one(index: int, text: Tensor, order: InOrder) -> None:
            wanted = [*parameters.values()]
            hidden = last.read(index)
            loss = _loss(model.logits(text, hidden), text)
            above = torch.autograd.grad(loss, wanted, allow_unused=True)
            slope = slopes.read(index).to(model.device)
            below = torch.autograd.grad(model.first(text), wanted, slope, allow_unused=True)
            sums.add(self._places[index], [*map(_sum, above, below)], order, index)

        with _differentiated(parameters):
            self._each(one)
        self._keep(_ENDS, sums)

    def _sums(self, place: int | str, parameters: dict[str, nn.Parameter]) -> _Sums:
        known = _part(place, self._group - 1)
        before = self._work.part(known) if self._group else {}
        return _Sums(parameters, self._kinds, before)

    def _keep(self, place: int | str, sums: _Sums) -> None:
        # after the last group sums become means
        count = len(self._texts) if self._places.stop == len(self._texts) else 1
        part = check_finite(self._model.name, sums.part(count))
        self._work.keep(_part(place, self._group), part)
        if self._group:
            self._work.drop(_part(place, self._group - 1))


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _loss(logits: Tensor, text: Tensor) -> Tensor:
    """Minus the log-likelihood of a text's tokens from the second on, (), in nats."""
    targets = text[1:].to(logits.device)
    return nn.functional.cross_entropy(logits[:-1].float(), targets, reduction="sum")


@contextmanager
def _differentiated(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Let gradients in the parameters be computed within."""
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
