"""Element-wise functions compiled into one pass over memory, with the bytes of the plain call.

Where a function cannot be compiled (no C++ compiler, or it asks Python about a tensor's value), it
is called as it is: slower, with equal results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

_LOGGER = logging.getLogger(__name__)
_OPTIONS: dict[str, Any] = {
    # round to a narrower dtype where the code says so, even if it is widened again at once
    "emulate_precision_casts": True,
}
_VARIANTS = 256
"""How many combinations of method, dtypes, number of experts and switches may be compiled."""


class Compiler:
    """Calls functions of flat tensors of one length, each compiled at its first call."""

    def __init__(self) -> None:
        self._uncompiled: set[Any] = set()
        torch._dynamo.config.recompile_limit = _VARIANTS

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)`. One-dimensional tensors as long as the first argument, wherever
        they are among the arguments, may differ in length from call to call; all else is better
        constant.
        """
        if function in self._uncompiled:
            return function(*arguments)
        for tensor in _tensors(arguments):
            if tensor.shape == arguments[0].shape:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        try:
            return _compile(function)(*arguments)
        except Exception as error:  # many kinds, and none may cost more than the speed
            _LOGGER.warning("%s runs uncompiled: %s", function, str(error).partition("\n")[0])
            self._uncompiled.add(function)
            return function(*arguments)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nest of mappings, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


@cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, options=_OPTIONS)
