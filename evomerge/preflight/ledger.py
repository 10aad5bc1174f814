"""A rehearsal's bookkeeping: which matrix products were asked for, and how much memory lived.

Within a `Ledger` every tensor operation runs as it is, except that products with weights are not
computed: they cost nearly all the time, and how long each takes can be measured on a few rows. What
they would have written is zeros of the right shape, so that the memory is taken that would be taken
and all other code runs. Weights are never read, so that those of a large model need not be there.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Product(NamedTuple):
    """[rows, inner] @ [inner, columns]."""

    rows: int
    inner: int
    columns: int
    dtype: torch.dtype


class Ledger(TorchDispatchMode):
    """Attributes:
    products: how often each was asked for.
    live: bytes of the tensors made within that are still alive.
    peak: the most that were alive at a time.
    """

    def __init__(self, given: Iterable[Tensor] = (), choice: tuple[int, int] | None = None) -> None:
        """`given`: tensors that do not count, as a model's weights. `choice`: (columns, index):
        in products of so many columns, as a head's, this one is the largest.
        """
        super().__init__()
        self.products: Counter[Product] = Counter()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}
        self._choice = choice

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _with_a_weight(func, args):
            out = self._noted(*args[-2:])
        else:
            if torch._C._dispatch_has_kernel_for_dispatch_key(
                func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
            ):
                with self:
                    out = func.decompose(*args, **kwargs)
                if out is not NotImplemented:
                    return out
            out = func(*args, **kwargs)
        tree_map_only(Tensor, self._count, out)
        return out

    def _noted(self, left: Tensor, weight: Tensor) -> Tensor:
        """A product, or one for each matrix of a batch, as zeros."""
        rows, columns = left.shape[-2], weight.shape[-1]
        batch = left.shape[:-2]
        self.products[Product(rows, left.shape[-1], columns, left.dtype)] += math.prod(batch)
        out = left.new_zeros(*batch, rows, columns)
        if self._choice and self._choice[0] == columns:
            out[..., self._choice[1]] = 1
        return out

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, key, storage.nbytes())
        return tensor

    def _drop(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.live -= nbytes


def _with_a_weight(func: Any, args: tuple[Any, ...]) -> bool:
    """A linear layer's product: of two matrices, or of a batch and one matrix for all of it."""
    if func.overloadpacket is torch.ops.aten.bmm:
        return args[1].stride(0) == 0
    return func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
