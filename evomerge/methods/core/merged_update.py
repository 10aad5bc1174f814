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


def around_mean(
    view: View,
    kind: str,
    matrix: Callable[[Tensor], Tensor],
    solve: Callable[[Tensor, Tensor], Tensor],
) -> Update:
    """Merge task vectors as τ̄ + (Σ δᵢHᵢ)(Σ Hᵢ)⁻¹, δᵢ = τᵢ − τ̄; a tensor without Hᵢ by the mean.

    Args:
        view: of one tensor.
        kind: of the calibration data that the Hᵢ are made of.
        matrix: makes Hᵢ of an expert's, both float64 (in, in).
        solve: makes the second term, float64 (out, in), of Σ δᵢHᵢ and Σ Hᵢ, which it may change.
    """
    from evomerge.common.accelerator import as_float64

    taus = [tau.view(*view.shape) for tau in view.taus(slice(None))]
    calibrated = view.calibrated.get(kind)
    with one_thread():
        if calibrated is None or taus[0].dim() != 2:
            return Update(mean(taus).reshape(-1))
        # 1. rows are outputs, columns inputs
        wide = [as_float64(tau.mT if view.transposed else tau) for tau in taus]
        middle = mean(wide)
        # 2. Σ δᵢHᵢ and Σ Hᵢ
        pulled, total = wide[0] * 0, as_float64(calibrated[0]) * 0
        for tau, own in zip(wide, calibrated, strict=True):
            made = matrix(as_float64(own))
            pulled = pulled + (tau - middle) @ made
            total = total + made
        del own, made
        # 3. the normal equations
        found = middle + solve(pulled, total)
        return Update((found.mT if view.transposed else found).to(taus[0]).reshape(-1))


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
