"""Compiles element-wise functions into one pass over memory, with the bytes of the plain call.

A function is traced once for each form of its arguments and handed to TorchInductor as it is:
`torch.compile` would check at every call what the form says already, and that takes longer than
merging a small matrix.

Where a function cannot be compiled (no C++ compiler, or it asks Python about a tensor's value), it
is called as it is: slower, with equal results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch import Tensor

_LOGGER = logging.getLogger(__name__)
_EXACT = (
    # round to a narrower dtype where the code says so, even if it is widened again at once; on a
    # GPU, no multiplication and addition in one rounding either
    "emulate_precision_casts",
    # on a GPU, divide and keep small numbers as IEEE 754 has it, and CPUs do
    "eager_numerics.division_rounding",
    "eager_numerics.disable_ftz",
)
_TYPICAL = 1 << 20
"""Entries of the tensors that functions are traced with, by which threads share loops."""
_VARIANTS = 256
"""Number of functions and forms of arguments that may be compiled."""
_CONSTANTS = (bool, int, float, str, torch.dtype, torch.device, type(None))


class Arguments(dict[str, Any]):
    """Arguments that many calls share, and that do not change: their form is found out once."""

    @cached_property
    def flat(self) -> tuple[Hashable, Sequence[Tensor]]:
        """The form of the nest, and its tensors."""
        tensors: list[Tensor] = []
        return _form(dict(self), None, tensors), tensors


class Compiler:
    """Calls functions of flat tensors of one length, each compiled at its first call.

    One-dimensional tensors as long as the first argument, wherever they are among the arguments,
    may differ in length from call to call, and a function must not ask for it; all else but the
    values of tensors is better constant.
    """

    def __init__(self) -> None:
        self._compiled: dict[Hashable, Callable[..., Any]] = {}
        self._uncompiled: set[Callable[..., Any]] = set()
        self._lock = Lock()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(*arguments)`; the first argument is a tensor."""
        if function in self._uncompiled:
            return function(*arguments)
        try:
            # the key: the function and all of its arguments but the values of tensors
            tensors: list[Tensor] = []
            form = _form(arguments, arguments[0].shape, tensors)
            key = (function, torch.get_num_threads(), form)  # threads are constant in loops, too
            device = arguments[0].device
            if device.type != "cpu":  # a kernel there cannot read numbers that are here
                tensors = [tensor.to(device, non_blocking=True) for tensor in tensors]
            with self._lock:
                if key not in self._compiled:
                    self._compiled[key] = self._compile(function, arguments, tensors)
            return self._compiled[key](*tensors)
        except Exception as error:  # many kinds, and none may cost more than the speed
            _LOGGER.warning("%s runs uncompiled: %s", function, str(error).partition("\n")[0])
            self._uncompiled.add(function)
            return function(*arguments)

    def _compile(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], tensors: list[Tensor]
    ) -> Callable[..., Any]:
        """Compile `function` as one of the tensors among these arguments, in their order."""
        import torch._inductor  # late, for it takes a second
        from torch.fx.experimental.proxy_tensor import make_fx

        if len(self._compiled) >= _VARIANTS:
            raise RuntimeError(f"more than {_VARIANTS} forms of arguments")
        # trace with tensors of a typical length, which is symbolic in the graph
        length = arguments[0].shape
        like = [t.new_empty(_TYPICAL) if t.shape == length else t for t in tensors]

        def of_tensors(*tensors: Tensor) -> Any:
            return function(*_with_tensors(arguments, iter(tensors)))

        graph = make_fx(of_tensors, tracing_mode="symbolic")(*like)
        # compile the graph; an option that this version of torch lacks is one it does not need
        fakes = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        known = torch._inductor.list_options()
        options = {name: True for name in _EXACT if name in known}
        if "size_asserts" in known:  # the form says it
            options["size_asserts"] = False
        return torch._inductor.compile(graph, fakes, options=options)


def _form(value: Any, length: torch.Size | None, tensors: list[Tensor]) -> Hashable:
    """Return a nest without its tensors' values and slices' lengths; collect the tensors.

    Args:
        length: the shape of slices; None where there are none.

    Raises:
        TypeError: it holds what is neither tensor, constant, dict, list nor tuple.
    """
    kind = type(value)
    if kind is Tensor or isinstance(value, Tensor):
        tensors.append(value)
        shape = value.shape
        return value.dtype, value.device, None if shape == length else shape
    if kind in _CONSTANTS:
        return value
    if kind is Arguments and all(t.shape != length for t in value.flat[1]):
        tensors += value.flat[1]
        return value.flat[0]
    if isinstance(value, dict):
        return tuple([(key, _form(entry, length, tensors)) for key, entry in value.items()])
    if isinstance(value, list | tuple):
        return (kind, *[_form(entry, length, tensors) for entry in value])
    if isinstance(value, _CONSTANTS):
        return value
    raise TypeError(f"no place for a {type(value).__name__} among the arguments")


def _with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Return the nest with these tensors in the places of its own, in order."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {key: _with_tensors(entry, tensors) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [_with_tensors(entry, tensors) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value
