"""The accelerator by one small interface: what it is called, its memory, streams and generators.

torch has a module for each kind of accelerator, with the same functions under the same names:
`torch.cuda` for NVIDIA's and, under ROCm, AMD's GPUs, `torch.xpu` for Intel's, other packages' own.
Only Apple's, `torch.mps`, differs: it shares the host's memory and has neither streams nor float64.
No other file asks one of these modules.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CPU = "cpu"
ON_REQUEST = frozenset({"mps"})
"""Kinds that are used only where they are named: nobody has measured them."""
WITHOUT_FLOAT64 = {"mps"}
"""Kinds whose arithmetic ends at float32."""


def available() -> str | None:
    """Return the kind of accelerator that torch can use here, `cuda` for one; None without any."""
    kind = _built_for()
    return kind if kind is not None and torch.accelerator.is_available() else None


def _built_for() -> str | None:
    """The kind of accelerator that this torch is built for, whether there is one or not."""
    try:
        found = torch.accelerator.current_accelerator()
    except RuntimeError:  # torch 2.6 says so where it is built for none
        return None
    return None if found is None else found.type


def accelerators() -> list[Accelerator]:
    """Return all devices of that kind that the process sees."""
    kind = available()
    count = torch.accelerator.device_count() if kind else 0
    return [Accelerator(torch.device(f"{kind}:{index}")) for index in range(count)]


def generators() -> list[torch.Generator]:
    """Return torch's global generators: the CPU's, and those of an accelerator that is in use.

    One that is not in use is not asked: asking would start it in a process that never needs it.
    """
    kind = _built_for()
    if kind is None:
        return [torch.default_generator]
    module: Any = torch.get_device_module(kind)
    if kind == "mps":
        return [torch.default_generator, module._get_default_mps_generator()]
    own = module.default_generators if module.is_initialized() else ()
    return [torch.default_generator, *own]


def device_name(device: torch.device) -> str:
    """Return the name of a device's model, `NVIDIA H200` for one; a CPU's is `cpu`."""
    return device.type if device.type == CPU else Accelerator(device).name


def has_float64(device: torch.device) -> bool:
    """Say whether a device computes in float64."""
    return device.type not in WITHOUT_FLOAT64


def as_float64(tensor: Tensor) -> Tensor:
    """Widen a tensor to float64: on its device, or on the CPU where the device has no float64."""
    return tensor.double() if has_float64(tensor.device) else tensor.cpu().double()


def synchronize(device: torch.device | str) -> None:
    """Wait until a device has done all that it was asked for; a CPU always has."""
    device = torch.device(device)
    if device.type != CPU:
        module: Any = torch.get_device_module(device)
        module.synchronize(*() if device.type == "mps" else (device,))


@dataclass(frozen=True)
class Accelerator:
    """One device that is not a CPU. Sizes are in bytes, those of memory this process's own.

    Attributes:
        device: with or without an index; without one it is the present device of its kind.
    """

    device: torch.device

    @property
    def _module(self) -> Any:
        return torch.get_device_module(self.device)

    @property
    def _is_apples(self) -> bool:
        return self.device.type == "mps"

    @property
    def name(self) -> str:
        """The name of its model."""
        return "Apple GPU" if self._is_apples else self._module.get_device_name(self.device)

    def memory(self) -> tuple[int, int]:
        """Return its free memory, whoever uses the rest, and its whole memory."""
        if self._is_apples:
            total = self._module.recommended_max_memory()
            return max(0, total - self._module.driver_allocated_memory()), total
        return self._module.mem_get_info(self.device)

    def allocated(self) -> int:
        """Return what tensors take now."""
        if self._is_apples:
            return self._module.current_allocated_memory()
        return self._module.memory_allocated(self.device)

    def reserved(self) -> int:
        """Return what torch has taken from the device, for tensors now and later."""
        if self._is_apples:
            return self._module.driver_allocated_memory()
        return self._module.memory_reserved(self.device)

    def forget_peak(self) -> None:
        """Let the peak begin at what tensors take now."""
        if not self._is_apples:
            self._module.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        """Return the most that tensors took at a time; on Apple's, what torch keeps for them."""
        if self._is_apples:
            return self.reserved()
        return self._module.max_memory_allocated(self.device)

    def stream(self) -> Any:
        """Return a new stream; None where the device has one queue for everything."""
        return None if self._is_apples else self._module.Stream(self.device)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Let what is asked for inside the block be done on a stream."""
        return self._module.stream(stream)

    def current_stream(self) -> Any:
        """Return the stream on which what is asked for now is done."""
        return self._module.current_stream(self.device)
