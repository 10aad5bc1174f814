"""Updates that the sources decide alone, up to λ: a statistic, which a candidate scales and adds.

Tensors of one dimension, which are no matrices, are averaged, as the papers of TSVM, Iso-C and WUDI
do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evomerge.common.one_thread import one_thread
from evomerge.methods.core.slices import Entries
from evomerge.methods.core.view import Tensor, View


@dataclass(frozen=True)
class Update:
    """A merged task vector: (n,) in the arithmetic's dtype."""

    values: Tensor

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return int(self.values.nbytes)


class Scaled(NamedTuple):
    """A merged task vector, entry by entry, and λ."""

    update: Any
    scale: float

    def added_to(self, base: Tensor) -> Tensor:
        """Return θ₀ + λΔ."""
        return base + self.update * self.scale


def mean(taus: Sequence[Tensor]) -> Tensor:
    """Average task vectors that are no matrices."""
    return sum(taus[1:], taus[0]) / len(taus)


def of_sources(
    merge: Callable[[Sequence[Tensor]], Tensor],
) -> tuple[Callable[[View], Update], Callable[..., Scaled]]:
    """Make a method's `joint` and `measure` of a function of task vectors that are matrices.

    Args:
        merge: from each expert's τ, of one shape (…, m, n), to the merged one. It stands at the
            top of its file, under whose name the result is kept.
    """

    def update(view: View) -> Update:
        taus = [tau.view(*view.shape) for tau in view.taus(slice(None))]
        with one_thread():
            return Update((merge(taus) if taus[0].dim() > 1 else mean(taus)).reshape(-1))

    def scaled(view: View, *, lambda_: float, statistics: Update | None = None) -> Scaled:
        return Scaled(Entries((statistics or update(view)).values), lambda_)

    update.__module__ = merge.__module__
    update.__name__ = update.__qualname__ = f"{merge.__name__}_update"
    return update, scaled
