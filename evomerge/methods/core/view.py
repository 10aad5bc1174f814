"""The tensors of one merge as measures see them: flat, read block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.common.one_thread import one_thread

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
        calibrated: kind → one tensor per expert, of the calibration data that the method asks for
            and all of them have of this tensor: `fisher` (n,), `gram` and `cross` (inputs, inputs),
            `gtheta` (samples, n).
        rms: of each expert's `fisher`, the root of the mean square over its whole model.
        transposed: rows are the inputs, as in GPT-2's `Conv1D`, not the columns.
    """

    base: Tensor
    experts: Sequence[Tensor]
    dtype: Any
    block: int = 1 << 16
    run: Callable[..., Any] = lambda function, *rest: function(*rest)
    shape: Sequence[int] = ()
    calibrated: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    rms: Sequence[float] = ()
    transposed: bool = False

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


def whole_view(
    base: Tensor,
    experts: Sequence[Tensor],
    calibrated: Mapping[str, Sequence[Tensor]] | None = None,
    rms: Sequence[float] | None = None,
) -> View:
    """Return the view over whole tensors that a method measures when called on its own.

    Args:
        base: θ₀.
        experts: of its shape.
        calibrated: kind → one tensor per expert, in the shapes of calibration files.
        rms: of each `fisher` over its whole model; over this tensor unless given.
    """
    flat = [e.flatten() for e in experts]
    held: dict[str, Sequence[Tensor]] = {}
    for kind, tensors in (calibrated or {}).items():
        held[kind] = [one_kind(kind, tensor) for tensor in tensors]
    with one_thread():
        own = [float(f.double().square().mean().sqrt()) for f in held.get("fisher", ())]
    shape = tuple(base.shape)
    return View(base.flatten(), flat, base.dtype, shape=shape, calibrated=held, rms=rms or own)


def one_kind(kind: str, tensor: Tensor) -> Tensor:
    """Give what is about entries one dimension for them: (n,), or (samples, n)."""
    if kind == "fisher":
        return tensor.reshape(-1)
    return tensor.reshape(len(tensor), -1) if kind == "gtheta" else tensor
