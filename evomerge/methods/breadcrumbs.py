"""Model breadcrumbs: task vectors without their largest and their smallest entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

from evomerge.methods.registry import PerExpert, Tensor, View, merge_method
from evomerge.methods.spectra import Spectrum, spectrum, task_vector
from evomerge.methods.task_arithmetic import Density, Lambda, Weight, elect_and_sum, shares
from evomerge.methods.trimming import Band, cut

Gamma = Annotated[Sequence[float], PerExpert(0.01, low=0.0, high=1.0)]


class Crumbs(NamedTuple):
    """The band of |τ| that each expert keeps, and the factors of the experts."""

    bands: list[Band]
    shares: Sequence[float]


def crumbs(
    view: View,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    lambda_: float,
    normalize: bool,
    statistics: Sequence[Spectrum] | None = None,
) -> Crumbs:
    """Bands of int(density·n) entries below the int(γn) largest, or above the smallest ones."""
    found = bands(view, density=density, gamma=gamma, statistics=statistics)
    return Crumbs(found, shares(view, weight=weight, lambda_=lambda_, normalize=normalize))


def bands(
    view: View,
    *,
    density: Sequence[float],
    gamma: Sequence[float],
    statistics: Sequence[Spectrum] | None = None,
) -> list[Band]:
    """One band per expert."""
    n, experts = view.base.numel(), range(len(density))
    known = statistics or [spectrum(view, expert) for expert in experts]
    ranks = []
    for one, kept, dropped in zip(known, density, gamma, strict=True):
        wanted = int(kept * n) if kept < 1 else n
        last = n - max(0, n - wanted - int(dropped * n))
        first = last - wanted if one.finite else 0  # what is not finite must be seen
        ranks.append([first, last if wanted else 0])
    values = [task_vector(view, expert) for expert in experts]
    return [Band(upper, lower) for upper, lower in cut(values, ranks, known)]


@merge_method(
    reference="Davari & Belilovsky 2023, arXiv:2312.06795, eq. 2",
    measure=crumbs,
    statistic=spectrum,
    relative=True,
)
def breadcrumbs(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    density: Density,
    gamma: Gamma,
    lambda_: Lambda = 1.0,
    normalize: bool = False,
    measured: Crumbs,
) -> Tensor:
    """θ₀ + λ Σ wᵢ(mᵢ ⊙ τᵢ): of |τᵢ| the top `gamma` share is dropped, then the smallest.

    int(density·n) entries remain, per tensor; where γ and density exceed 1 together, fewer large
    ones are dropped. Of tied entries the lower index counts as larger.
    """
    parts = [
        kept.of(expert - base) * share
        for share, kept, expert in zip(measured.shares, measured.bands, experts, strict=True)
    ]
    return base + sum(parts[1:], parts[0])


@merge_method(
    reference="Davari & Belilovsky 2023, arXiv:2312.06795, with TIES' sign election",
    measure=bands,
    statistic=spectrum,
    relative=True,
)
def breadcrumbs_ties(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    density: Density,
    gamma: Gamma,
    lambda_: Lambda = 1.0,
    normalize: bool = True,
    measured: list[Band],
) -> Tensor:
    """Trim both ends as breadcrumbs does, then elect signs and merge as TIES does."""
    parts = [
        kept.of(expert - base) * value
        for value, kept, expert in zip(weight, measured, experts, strict=True)
    ]
    return base + elect_and_sum(parts, weight, normalize) * lambda_
