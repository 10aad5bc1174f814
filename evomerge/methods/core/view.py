"""The tensors of one merge as measures see them: flat, read block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # annotations are read at run time without importing torch


class Statistic(Protocol):
    """A property of a source's tensor, kept for every later candidate."""

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""


@dataclass(frozen=True)
class View:
    """The flat tensors of one merge, read block by block in the arithmetic's dtype.

    `base` and each of `experts` is 1-D, in its stored dtype, and all have one length.

    Attributes:
        dtype: of the arithmetic.
        block: entries that are read at a time.
        run: calls an element-wise function, compiled or as it is.
        shape: of the tensors, where they have more than one dimension.
    """

    base: Tensor
    experts: Sequence[Tensor]
    dtype: Any
    block: int = 1 << 16
    run: Callable[..., Any] = lambda function, *rest: function(*rest)
    shape: Sequence[int] = ()

    @property
    def columns(self) -> int:
        """Entries of a row, that is along the last dimension; of all where no shape is known."""
        return self.shape[-1] if self.shape else self.base.numel()

    def taus(self, part: Any, experts: Sequence[int] | None = None) -> list[Tensor]:
        """Return the task vectors' entries in a slice, or at the places of an index tensor."""
        base = self.base[part].to(self.dtype)
        return [expert[part].to(self.dtype) - base for expert in self._chosen(experts)]

    def map(
        self,
        function: Callable[..., Any],
        experts: Sequence[int] | None = None,
        *rest: Tensor,
        stop: int | None = None,
    ) -> Iterator[Any]:
        """Call an element-wise `function([τ₁, …], *rest)` block by block, up to entry `stop`."""
        of_task_vectors, chosen = _of_task_vectors(function, self.dtype), self._chosen(experts)
        for part in self.parts(stop):
            yield self.run(of_task_vectors, self.base[part], [e[part] for e in chosen], *rest)

    def parts(self, stop: int | None = None) -> Iterator[slice]:
        """Yield slices of `block` entries, up to entry `stop`."""
        end = self.base.numel() if stop is None else stop
        for start in range(0, end, self.block):
            yield slice(start, min(start + self.block, end))

    def _chosen(self, experts: Sequence[int] | None) -> Sequence[Tensor]:
        return self.experts if experts is None else [self.experts[i] for i in experts]


@cache
def _of_task_vectors(function: Callable[..., Any], dtype: Any) -> Callable[..., Any]:
    """Make `function` one of the stored tensors; one object for each, so that it compiles once."""

    def of_stored(base: Tensor, experts: Sequence[Tensor], *rest: Tensor) -> Any:
        wide = base.to(dtype)
        return function([expert.to(dtype) - wide for expert in experts], *rest)

    return of_stored


def whole_view(base: Tensor, experts: Sequence[Tensor]) -> View:
    """Return the view over whole tensors that a method measures when called on its own."""
    flat = [e.flatten() for e in experts]
    return View(base.flatten(), flat, base.dtype, shape=tuple(base.shape))
