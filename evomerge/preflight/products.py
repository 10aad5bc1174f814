"""How long matrix products take here, measured on as few rows as tell it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from evomerge.preflight.ledger import Product

_ROWS = 512
"""From here on the time of a product grows with its rows."""
_COLUMNS = 1 << 14
"""As with rows."""
_SECONDS = 0.1


class Products:
    """Seconds of products on one device; each shape is measured once."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._seconds = cache(self._measured)

    def seconds(self, products: Mapping[Product, float]) -> float:
        """What so many of each take one after the other."""
        return sum(count * self._one(product) for product, count in products.items())

    def _one(self, product: Product) -> float:
        rows, inner, columns, dtype = product
        if not rows or not columns or not inner:
            return 0.0
        width = min(columns, _COLUMNS)
        at = min(rows, _ROWS)
        low = 1 << at.bit_length() - 1
        first = self._seconds(low, inner, width, dtype)
        if at == low:
            found = first
        else:  # between powers of two
            second = self._seconds(2 * low, inner, width, dtype)
            found = first + (second - first) * (at - low) / low
        return found * (rows / at) * (columns / width)

    def _measured(self, rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
        weight, a = self._random(columns, inner, dtype), self._random(rows, inner, dtype)
        return best_of(lambda: a @ weight.t(), self._device, _SECONDS)

    def _random(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, columns, dtype=dtype, device=self._device).normal_()


def best_of(work: Callable[[], object], device: str, seconds: float) -> float:
    """The shortest of several calls, which take so long together; two at least."""
    work()
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
