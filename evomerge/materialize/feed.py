"""Brings the tensors of the sources to where they are merged, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from evomerge.materialize.plan import TensorStep
from evomerge.models.source import Source
from evomerge.models.vocabulary import with_base_rows
from evomerge.recipe import BASE

Target = tuple[Tensor, TensorStep]
"""Where a step's result is to be written."""
AHEAD = 1
"""Steps whose tensors are on their way while one is merged."""


class Feed(Protocol):
    """A way from the sources to a device."""

    @property
    def device(self) -> torch.device:
        """Where tensors are brought; of several GPUs, the one of the step's target."""

    def each(self, targets: Sequence[Target]) -> Iterator[list[Tensor]]:
        """For every step in order the tensors of `step.reads`, with the base's shape and in their
        stored dtype. They are good until the next step's are asked for.
        """


class MemoryMapped:
    """The tensors as the sources have them, mapped from their files.

    Where a model is spread over several GPUs, they are copied to the target's each time.
    """

    device = torch.device("cpu")

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources

    def each(self, targets: Sequence[Target]) -> Iterator[list[Tensor]]:
        """As `Feed.each`."""
        for out, step in targets:
            yield [_read(self._sources, step, name).to(out.device) for name in step.reads]


class DeviceCache:
    """Copies on the device, made when a tensor is first read and kept for all later candidates."""

    def __init__(self, sources: Mapping[str, Source], device: torch.device | str) -> None:
        self._sources, self.device = sources, torch.device(device)
        self._held: dict[tuple[str, str], Tensor] = {}

    def each(self, targets: Sequence[Target]) -> Iterator[list[Tensor]]:
        """As `Feed.each`."""
        for _, step in targets:
            yield [self._of(step, name) for name in step.reads]

    def _of(self, step: TensorStep, name: str) -> Tensor:
        key = (name, step.tensor.name)
        if key not in self._held:
            self._held[key] = _read(self._sources, step, name).to(self.device)
        return self._held[key]


class CopyStream(Protocol):
    """How tensors are copied to a device while it computes."""

    @property
    def device(self) -> torch.device:
        """The device."""

    def pinned(self, tensor: Tensor) -> Tensor:
        """The tensor in memory from which `send` need not wait."""

    def send(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """Begin to copy a pinned tensor; it may be used after `receive`."""

    def receive(self, tensor: Tensor, sent: Any) -> Tensor:
        """Let what is computed from now on wait for a copy."""

    def mark(self) -> Any:
        """The moment when all that was asked for so far has been computed."""

    def wait(self, mark: Any) -> None:
        """Until that moment."""


class CudaLane:
    """Copies on a stream of their own."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._stream = torch.cuda.Stream(self.device)

    def pinned(self, tensor: Tensor) -> Tensor:
        """As `CopyStream.pinned`. Pinned memory is used again only when copies from it are done:
        torch sees to that.
        """
        return tensor.pin_memory()

    def send(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """As `CopyStream.send`."""
        with torch.cuda.stream(self._stream):
            copy = tensor.to(self.device, non_blocking=True)
            return copy, self._stream.record_event()

    def receive(self, tensor: Tensor, sent: Any) -> Tensor:
        """As `CopyStream.receive`."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(sent)
        tensor.record_stream(current)  # its memory is the other stream's
        return tensor

    def mark(self) -> Any:
        """As `CopyStream.mark`."""
        return torch.cuda.current_stream(self.device).record_event()

    def wait(self, mark: Any) -> None:
        """As `CopyStream.wait`."""
        mark.synchronize()


class Prefetched:
    """Tensors copied to the device for every candidate, the next step's while one is merged.

    At most `AHEAD` + 2 steps' tensors are on the device at a time: those that are merged, those
    on their way, and those of a step that the device may not have done with. Pinned copies are kept
    in the host's memory as far as `room` bytes go; what finds no room there is pinned anew each
    time, which takes a pass over the host's memory.
    """

    def __init__(self, sources: Mapping[str, Source], lane: CopyStream, room: int) -> None:
        self._sources, self._lane, self._room = sources, lane, room
        self.device = lane.device
        self._pinned: dict[tuple[str, str], Tensor] = {}

    def each(self, targets: Sequence[Target]) -> Iterator[list[Tensor]]:
        """As `Feed.each`."""
        sent: deque[list[tuple[Tensor, Any]]] = deque()
        marks: deque[Any] = deque()
        left = (step for _, step in targets)
        for _ in targets:
            while len(sent) <= AHEAD and (step := next(left, None)) is not None:
                sent.append([self._lane.send(self._host(step, name)) for name in step.reads])
            yield [self._lane.receive(*copy) for copy in sent.popleft()]
            marks.append(self._lane.mark())
            if len(marks) > AHEAD:
                self._lane.wait(marks.popleft())

    def _host(self, step: TensorStep, name: str) -> Tensor:
        key = (name, step.tensor.name)
        if key in self._pinned:
            return self._pinned[key]
        pinned = self._lane.pinned(_read(self._sources, step, name))
        taken = 1 << (pinned.nbytes - 1).bit_length()  # torch pins powers of two
        if taken <= self._room:
            self._room -= taken
            self._pinned[key] = pinned
        return pinned


def _read(sources: Mapping[str, Source], step: TensorStep, name: str) -> Tensor:
    return with_base_rows(sources[name], sources[BASE], step.tensor)
