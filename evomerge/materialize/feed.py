"""Feeds bring the tensors of the sources to where they are merged, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from evomerge.common.accelerator import Accelerator
from evomerge.materialize.plan import TensorStep
from evomerge.models.source import Source
from evomerge.models.vocabulary import with_base_rows
from evomerge.recipe import BASE

Target = tuple[Tensor, TensorStep]
"""The tensor into which a step's result is written, and the step."""
AHEAD = 1
"""Number of steps whose tensors are on their way while one is merged."""


class Feed(Protocol):
    """Brings the sources to a device."""

    @property
    def device(self) -> torch.device:
        """The device to which tensors are brought; of several GPUs, that of the step's target."""

    def each(self, targets: Sequence[Target]) -> Iterator[list[Tensor]]:
        """Yield for every step in order the tensors of `step.reads`.

        They have the base's shape and their stored dtype, and are good until the next step's are
        asked for.
        """


class MemoryMapped:
    """Gives the tensors as the sources have them, mapped from their files.

    Where a model is spread over several GPUs, tensors are copied to the target's each time.
    """

    device = torch.device("cpu")

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources

    def each(self, targets: Sequence[Target]) -> Iterator[list[Tensor]]:
        """Yield the mapped tensors, see `Feed.each`."""
        for out, step in targets:
            yield [_read(self._sources, step, name).to(out.device) for name in step.reads]


class DeviceCache:
    """Keeps copies on the device, made when a tensor is first read, for all later candidates."""

    def __init__(self, sources: Mapping[str, Source], device: torch.device | str) -> None:
        self._sources, self.device = sources, torch.device(device)
        self._copies: dict[tuple[str, str], Tensor] = {}

    def each(self, targets: Sequence[Target]) -> Iterator[list[Tensor]]:
        """Yield the copies, see `Feed.each`."""
        for _, step in targets:
            yield [self._copy_of(step, name) for name in step.reads]

    def _copy_of(self, step: TensorStep, name: str) -> Tensor:
        key = (name, step.tensor.name)
        if key not in self._copies:
            self._copies[key] = _read(self._sources, step, name).to(self.device)
        return self._copies[key]


class CopyStream:
    """Copies tensors to an accelerator, on a stream of its own, while the accelerator computes.

    Where it has one queue for everything, copies stand in that.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._accelerator = Accelerator(self.device)
        self._stream = self._accelerator.stream()

    def pinned(self, tensor: Tensor) -> Tensor:
        """Return the tensor in memory from which `send` need not wait.

        torch reuses pinned memory only when the copies from it are done.
        """
        return tensor if self._stream is None else tensor.pin_memory()

    def send(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """Begin to copy a pinned tensor; return the copy and the token that `receive` takes."""
        if self._stream is None:
            return tensor.to(self.device), None
        with self._accelerator.on(self._stream):
            copy = tensor.to(self.device, non_blocking=True)
            return copy, self._stream.record_event()

    def receive(self, copy: Tensor, token: Any) -> Tensor:
        """Let all computations from now on wait for a copy, and return it."""
        if token is None:
            return copy
        current = self._accelerator.current_stream()
        current.wait_event(token)
        copy.record_stream(current)  # its memory is the other stream's
        return copy

    def mark(self) -> Any:
        """Return a mark that is reached when all computations asked for so far are done."""
        return None if self._stream is None else self._accelerator.current_stream().record_event()

    def wait(self, mark: Any) -> None:
        """Block until a mark is reached."""
        if mark is not None:
            mark.synchronize()


class Prefetched:
    """Copies tensors to the device for every candidate, the next step's while one is merged.

    At most `AHEAD` + 2 steps' tensors are on the device at a time: those that are merged, those
    on their way, and those of a step that the device may not have finished. Pinned copies are kept
    in the host's memory as far as `room` bytes go; a tensor for which there is no room is pinned
    anew each time, which takes a pass over the host's memory.
    """

    def __init__(self, sources: Mapping[str, Source], stream: CopyStream, room: int) -> None:
        self._sources, self._stream, self._room = sources, stream, room
        self.device = stream.device
        self._pinned: dict[tuple[str, str], Tensor] = {}

    def each(self, targets: Sequence[Target]) -> Iterator[list[Tensor]]:
        """Yield copies, see `Feed.each`; the device's memory is bounded as the class says."""
        sent: deque[list[tuple[Tensor, Any]]] = deque()
        marks: deque[Any] = deque()
        left = (step for _, step in targets)
        for _ in targets:
            # send this step's tensors and those of `AHEAD` steps after it
            while len(sent) <= AHEAD and (step := next(left, None)) is not None:
                pinned = [self._pinned_copy(step, name) for name in step.reads]
                sent.append([self._stream.send(tensor) for tensor in pinned])
            # merge this step's; the caller computes on them until it asks for the next
            yield [self._stream.receive(*copy) for copy in sent.popleft()]
            # let the device finish the step before, so that its memory is free again
            marks.append(self._stream.mark())
            if len(marks) > AHEAD:
                self._stream.wait(marks.popleft())

    def _pinned_copy(self, step: TensorStep, name: str) -> Tensor:
        key = (name, step.tensor.name)
        if key in self._pinned:
            return self._pinned[key]
        pinned = self._stream.pinned(_read(self._sources, step, name))
        taken = 1 << (pinned.nbytes - 1).bit_length()  # torch pins powers of two
        if taken <= self._room:
            self._room -= taken
            self._pinned[key] = pinned
        return pinned


def _read(sources: Mapping[str, Source], step: TensorStep, name: str) -> Tensor:
    return with_base_rows(sources[name], sources[BASE], step.tensor)
