"""Sparsifiers: five ways to drop entries of task vectors before they are merged.

`magnitude` (TIES) keeps the largest entries, `fisher` those that matter most by the Fisher
information, `breadcrumbs` the largest but the very largest, `dare` drops at random, `della` at
random too, small ones rather. Each is a function from the tensors of a merge to one `Sparse` per
expert, which then makes τ sparse slice by slice; its signature is its schema, as a merge method's
is.

A random drop is decided by a counter-based mask (`At.keep`): it depends on the recipe's seed, the
tensor, the expert and the index alone. Survivors are rescaled so that the expected task vector
stays what it was (the papers), or so that its L1 norm does (mergekit).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from evomerge.methods.core.calibrated import fisher_trims, saliency_histogram
from evomerge.methods.core.inner_products import blocks, exact_sum
from evomerge.methods.core.magnitude_histograms import (
    MagnitudeHistogram,
    by_magnitude,
    magnitude_histogram,
)
from evomerge.methods.core.masks import At, limits
from evomerge.methods.core.parameters import Density, Parameter, PerExpert, parameters_of
from evomerge.methods.core.registry import call_with_named
from evomerge.methods.core.slices import Entries, part_of
from evomerge.methods.core.trim import Band, cut, trims
from evomerge.methods.core.view import Statistic, Tensor, View

Places = Callable[[int], At]
"""From a flat index to the place of a slice that begins there."""
Epsilon = Annotated[Sequence[float], PerExpert(0.15, low=0.0, high=0.5)]
Gamma = Annotated[Sequence[float], PerExpert(0.01, low=0.0, high=1.0)]
_ROWS = 1 << 20
"""Entries of whole rows that are ranked at a time."""


class Sparse(Protocol):
    """The entries that one expert keeps of a tensor, cut to a slice; a tuple of tensors."""

    def of(self, tau: Tensor, at: At | None, expert: int) -> Tensor:
        """Return τ of the slice, made sparse and rescaled.

        Args:
            at: where the slice lies; only for random sparsifiers.
            expert: index of the expert in `at`.
        """


class Sparsity(NamedTuple):
    """The result of a sparsifier for the tensors of one merge.

    Attributes:
        experts: one `Sparse` per expert; none where nothing is dropped.
        factors: what each expert's weight is multiplied by; none for 1.
    """

    experts: Sequence[Any]
    factors: Sequence[float]


@dataclass(frozen=True)
class Sparsifier:
    """A registered sparsifier.

    Attributes:
        measure: called as `measure(View, **parameters)`, with `at` (see `Places`) if it names it,
            and with one result of `statistic` per expert as `statistics` if they are known.
        statistic: as a merge method's.
        random: entries are dropped at random, by the masks of `at`.
        calibrated: kinds of calibration data that it needs of every expert, in the view.
        of_parameters: the measure looks at the parameters alone; it may get None for the view.
    """

    name: str
    measure: Callable[..., Sparsity]
    parameters: Mapping[str, Parameter]
    statistic: Callable[[View, int], Statistic] | None
    random: bool
    calibrated: tuple[str, ...] = ()
    of_parameters: bool = False

    def shared_by(self, experts: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Give every expert the same values: arguments for a call, of those that it takes."""
        own = {name: values[name] for name in self.parameters if name in values}
        each = {name for name, parameter in self.parameters.items() if parameter.per_expert}
        return {name: [v] * experts if name in each else v for name, v in own.items()}

    def __call__(
        self,
        view: View | None,
        arguments: Mapping[str, Any],
        statistics: Sequence[Statistic] | None = None,
    ) -> Sparsity:
        """Run the measure with those of the arguments, `at` among them, that it names."""
        return call_with_named(self.measure, view, arguments, statistics)


_SPARSIFIERS: dict[str, Sparsifier] = {}


def sparsifiers() -> Mapping[str, Sparsifier]:
    """Return every sparsifier by name."""
    return MappingProxyType(_SPARSIFIERS)


def sparsifier(
    statistic: Callable[[View, int], Statistic] | None = None,
    calibrated: Sequence[str] = (),
) -> Callable[[Callable[..., Sparsity]], Sparsifier]:
    """Make a measure a sparsifier, registered under its own name."""

    def register(measure: Callable[..., Sparsity]) -> Sparsifier:
        found = Sparsifier(
            name=measure.__name__,
            measure=measure,
            parameters=MappingProxyType(parameters_of(measure, ("at", "statistics"))),
            statistic=statistic,
            random="at" in inspect.signature(measure).parameters,
            calibrated=tuple(calibrated),
        )
        _SPARSIFIERS[found.name] = found
        return found

    return register


class Whole(NamedTuple):
    """A task vector of which everything is kept."""

    def of(self, tau: Tensor, at: At | None = None, expert: int = 0) -> Tensor:
        """Return τ."""
        return tau


def _nothing_dropped(_: View | None) -> Sparsity:
    return Sparsity([], [])


none = Sparsifier(
    "none", _nothing_dropped, MappingProxyType({}), None, random=False, of_parameters=True
)
"""Keeps task vectors as they are."""


# --- by magnitude ---------------------------------------------------------------------------------


@sparsifier(statistic=magnitude_histogram)
def magnitude(
    view: View, *, density: Density, statistics: Sequence[MagnitudeHistogram] | None = None
) -> Sparsity:
    """Keep the largest `density` share of each τ by |τ| (Yadav et al. 2023, TIES, step 1)."""
    found = trims(view, density=density, statistics=statistics)
    return Sparsity(found, [])


@sparsifier(statistic=saliency_histogram, calibrated=["fisher"])
def fisher(
    view: View, *, density: Density, statistics: Sequence[MagnitudeHistogram] | None = None
) -> Sparsity:
    """Keep the largest `density` share of each τ by F ⊙ τ², F the expert's diagonal Fisher (FFG).

    Tensors without a Fisher are trimmed by |τ|. Source: Mahdavinia et al. 2025, arXiv:2509.11167.
    """
    return Sparsity(fisher_trims(view, density, statistics), [])


@sparsifier(statistic=magnitude_histogram)
def breadcrumbs(
    view: View,
    *,
    density: Density,
    gamma: Gamma,
    statistics: Sequence[MagnitudeHistogram] | None = None,
) -> Sparsity:
    """Drop the int(γn) largest entries, then the smallest, until int(density·n) are left.

    Where γ and density exceed 1 together, fewer large ones are dropped. Source: Davari &
    Belilovsky 2023, arXiv:2312.06795, eq. 2.
    """
    n, ranks = view.base.numel(), []
    for kept, dropped in zip(density, gamma, strict=True):
        wanted = int(kept * n) if kept < 1 else n
        last = n - max(0, n - wanted - int(dropped * n))
        ranks.append([last - wanted, last if wanted else 0])
    rankings = [by_magnitude(view, expert) for expert in range(len(density))]
    found = [Band(upper, lower) for upper, lower in cut(rankings, ranks, statistics)]
    return Sparsity(found, [])


# --- at random ------------------------------------------------------------------------------------


class Dropped(NamedTuple):
    """DARE's mask of one expert.

    Attributes:
        limit: int32 (), for `At.keep`.
        factor: what rescales the survivors.
    """

    limit: Tensor
    factor: Any

    def keep(self, tau: Tensor, at: At, expert: int) -> Tensor:
        """Return which entries survive, bool of the shape of τ."""
        return at.keep(expert, tau, self.limit)

    def of(self, tau: Tensor, at: At, expert: int) -> Tensor:
        """Return τ ⊙ m, rescaled (eq. 1)."""
        return tau * self.keep(tau, at, expert) * self.factor


@sparsifier()
def dare(
    view: View,
    *,
    density: Density,
    rescale: Literal["density", "l1"] = "density",
    at: Places,
) -> Sparsity:
    """Keep each entry with probability `density`; rescale the survivors.

    By 1/density, so that τ is kept in expectation (Yu et al. 2024, arXiv:2311.03099, eq. 1), or by
    ‖τ‖₁/‖m ⊙ τ‖₁ where `rescale` is "l1". (A recipe's `drop` may say "none", too: by 1.)
    """
    # The factor is not one of `Sparsity.factors`: τ ⊙ m is multiplied by it and then by the weight,
    # in float32, and recorded studies have the bytes of that order.
    found = [Dropped(limit, 1.0) for limit in limits(density)]
    for i, (own, keep) in enumerate(zip(found, density, strict=True)):
        if rescale == "density":
            found[i] = own._replace(factor=1 / keep if keep > 0 else 0.0)
        elif rescale == "l1":
            found[i] = own._replace(factor=_l1_ratio(view, i, own, at))
    return Sparsity(found, [])


@dataclass(frozen=True)
class Ranks:
    """The ranks of an expert's entries within their rows: 0 for the smallest |τ|.

    Attributes:
        digits: uint8 (n,) each, to the base 256, the highest first: compiled code has no vector
            instructions for wider unsigned integers.
    """

    digits: Sequence[Tensor]

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return sum(int(digit.nbytes) for digit in self.digits)


def ranks(view: View, expert: int) -> Ranks:
    """Rank |τ| within every row (last dimension); of tied entries the lower index is larger."""
    import torch

    columns, device = view.columns, view.base.device
    shifts = range((max(columns - 1, 1).bit_length() - 1) // 8 * 8, -1, -8)
    found = [torch.empty(view.base.numel(), dtype=torch.uint8, device=device) for _ in shifts]
    falling = torch.arange(columns - 1, -1, -1, dtype=torch.int32, device=device)
    for part in _rows(view):
        [tau] = view.taus(part, [expert])
        order = tau.abs().view(-1, columns).argsort(dim=1, descending=True, stable=True)
        # the permutation's inverse: the i-th largest of a row has rank columns − 1 − i
        own = torch.empty(order.shape, dtype=torch.int32, device=order.device)
        own.scatter_(1, order, falling.expand(order.shape))
        for digit, shift in zip(found, shifts, strict=True):
            digit[part] = (own.view(-1) >> shift & 0xFF).to(torch.uint8)
    return Ranks(found)


def _rows(view: View) -> Iterator[slice]:
    size = max(1, _ROWS // max(view.columns, 1)) * view.columns
    for start in range(0, view.base.numel(), max(size, 1)):
        yield slice(start, min(start + size, view.base.numel()))


class Pruned(NamedTuple):
    """DELLA's mask of one expert: an entry is kept with probability p = low + step · rank.

    Attributes:
        digits: of the entries' ranks.
        low: 1 and more keep everything.
        step: of the probability, from a rank to the next.
        by_probability: 1 where survivors are divided by p, else 0.
    """

    digits: Sequence[Any]
    low: Any
    step: Any
    by_probability: Any

    def keep(self, tau: Tensor, at: At, expert: int) -> Tensor:
        """Return which entries survive, bool of the shape of τ; at p ≥ 1 all do."""
        return _survive(self._probability(tau), at, expert)

    def of(self, tau: Tensor, at: At, expert: int) -> Tensor:
        """Return τ ⊙ m, divided by p where that is asked for."""
        probability = self._probability(tau)
        divisor = (probability - 1) * self.by_probability + 1
        return tau * _survive(probability, at, expert) / divisor.clamp(2.0**-32)

    def _probability(self, tau: Tensor) -> Tensor:
        rank = self.digits[0].to(tau.dtype)  # exact below 2²⁴
        for digit in self.digits[1:]:
            rank = rank * 256 + digit.to(tau.dtype)
        return rank * self.step + self.low


def _survive(probability: Tensor, at: At, expert: int) -> Tensor:
    import torch

    # `At.keep` compares int32 bits with a bound: p · 2³² − 2³¹, within int32
    bound = probability.float() * 2.0**32 - 2.0**31
    bound = bound.clamp(-(2.0**31), 2.0**31 - 128).to(torch.int32)
    return at.keep(expert, probability, bound) | (probability >= 1)


@sparsifier(statistic=ranks)
def della(
    view: View,
    *,
    density: Density,
    epsilon: Epsilon,
    rescale: Literal["probability", "l1", "none"] = "probability",
    at: Places,
    statistics: Sequence[Ranks] | None = None,
) -> Sparsity:
    """Keep entries at random, of each row the larger ones rather (MagPrune).

    Within a row (last dimension) the probability p of surviving grows linearly with the rank of
    |τ|, from density − ε to density + ε (the paper: ± ε/2); ε is lessened where p would leave
    [0, 1]. Survivors are divided by p, or brought to the L1 norm of τ. Source: Deep et al. 2024,
    arXiv:2406.11617.
    """
    known = statistics or [ranks(view, expert) for expert in range(len(density))]
    found, factors = [], []
    for i, (own, middle, wide) in enumerate(zip(known, density, epsilon, strict=True)):
        reach = max(min(wide, middle, 1 - middle), 0.0) if view.columns != 1 else 0.0
        step = 2 * reach / max(view.columns - 1, 1)
        digits = [Entries(digit) for digit in own.digits]
        one = Pruned(digits, middle - reach, step, float(rescale == "probability"))
        found.append(one)
        factors.append(_l1_ratio(view, i, one, at) if rescale == "l1" else 1.0)
        if middle <= 0:
            factors[i] = 0.0
    return Sparsity(found, factors)


def _l1_ratio(view: View, expert: int, mask: Dropped | Pruned, at: Places) -> float:
    """Compute ‖τ‖₁/‖m ⊙ τ‖₁ in float64, exactly up to blocks; 1 where nothing is left."""
    from evomerge.common.accelerator import as_float64

    before, after = [], []
    for part in blocks(view):
        [tau] = view.taus(part, [expert])
        size = tau.abs()
        kept = part_of(mask, part).keep(tau, at(part.start), expert)
        before.append(as_float64(size).sum())
        after.append(as_float64(size * kept).sum())
    # a device is waited for once
    left = exact_sum(iter(after))
    return exact_sum(iter(before)) / left if left > 0 else 1.0
