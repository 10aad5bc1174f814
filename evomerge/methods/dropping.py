"""Task vectors with entries dropped at random: DARE, and DELLA, which drops small ones rather.

Whether an entry survives is decided by a counter-based mask (`At.keep`): it depends on the recipe's
seed, the tensor, the expert and the index alone. Survivors are rescaled so that the expected task
vector stays what it was (the papers), or so that its L1 norm does (mergekit).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from evomerge.methods.entries import Entries
from evomerge.methods.inner_products import blocks
from evomerge.methods.masks import At, limits
from evomerge.methods.registry import PerExpert, Tensor, View, merge_method
from evomerge.methods.task_arithmetic import Density, Lambda, Weight, elect_and_sum, shares

Places = Callable[[int], At]
_ROWS = 1 << 20
"""Entries of whole rows that are ranked at a time."""


class Dropout(NamedTuple):
    """What DARE needs of the densities.

    Attributes:
        limits: int32 (experts,), for `At.keep`.
        factors: what rescales the survivors, one per expert.
        shares: one per expert.
    """

    limits: Tensor
    factors: Sequence[float]
    shares: Sequence[float]

    def parts(self, base: Tensor, experts: Sequence[Tensor], at: At) -> list[Tensor]:
        """What is left of τᵢ times its share."""
        return [
            survivors(expert - base, at, i, self.limits[i], self.factors[i]) * self.shares[i]
            for i, expert in enumerate(experts)
        ]


def survivors(tau: Tensor, at: At, expert: int, limit: Tensor, factor: Any) -> Tensor:
    """τ ⊙ m, rescaled (DARE, eq. 1); `limit` is as for `At.keep`."""
    return tau * at.keep(expert, tau, limit) * factor


def rescaled(
    view: View, *, weight: Sequence[float], density: Sequence[float], rescale: str, at: Places
) -> Dropout:
    """The experts' weights, and what rescales the survivors."""
    factors = rescaling(view, density=density, rescale=rescale, at=at)
    return Dropout(limits(density), factors, list(weight))


def rescaling(view: View, *, density: Sequence[float], rescale: str, at: Places) -> list[float]:
    """1/densityᵢ, ‖τᵢ‖₁/‖mᵢ ⊙ τᵢ‖₁ where `rescale` is "l1", 1 where it is "none"."""
    if rescale == "none":
        return [1.0 for _ in density]
    if rescale == "density":
        return [1 / keep if keep > 0 else 0.0 for keep in density]
    return [
        _l1_ratio(view, expert, _masks(at, expert, bound))
        for expert, bound in enumerate(limits(density))
    ]


def _masks(at: Places, expert: int, bound: Tensor) -> Callable[[slice, Tensor], Tensor]:
    return lambda part, tau: at(part.start).keep(expert, tau, bound)


def _l1_ratio(view: View, expert: int, mask: Callable[[slice, Tensor], Tensor]) -> float:
    """‖τ‖₁/‖m ⊙ τ‖₁, 1 where nothing is left; sums are exact up to blocks, in float64."""
    before, after = [], []
    for part in blocks(view):
        [tau] = view.taus(part, [expert])
        magnitude = tau.abs().double()
        before.append(magnitude.sum().item())
        after.append((magnitude * mask(part, tau)).sum().item())
    kept = math.fsum(after)
    return math.fsum(before) / kept if kept > 0 else 1.0


def rescaled_shares(
    view: View,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: str,
    at: Places,
) -> Dropout:
    """The same with λwᵢ, divided by Σ wᵢ with `normalize` unless that is zero."""
    plain = shares(view, weight=weight, lambda_=lambda_, normalize=normalize)
    return rescaled(view, weight=plain, density=density, rescale=rescale, at=at)


@merge_method(
    reference="Yu et al. 2024, arXiv:2311.03099, with task arithmetic",
    measure=rescaled_shares,
    relative=True,
)
def dare_linear(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    density: Density,
    lambda_: Lambda = 1.0,
    normalize: bool = False,
    rescale: Literal["density", "l1"] = "density",
    at: At,
    measured: Dropout,
) -> Tensor:
    """Drop entries at random, rescale by 1/density, then task arithmetic.

    An entry of τᵢ survives with probability `density`. `rescale: l1` gives the survivors the L1
    norm of τᵢ instead, as mergekit does.
    """
    parts = measured.parts(base, experts, at)
    return base + sum(parts[1:], parts[0])


@merge_method(
    reference="Yu et al. 2024, arXiv:2311.03099, with TIES' sign election",
    measure=rescaled,
    relative=True,
)
def dare_ties(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    density: Density,
    lambda_: Lambda = 1.0,
    normalize: bool = True,
    rescale: Literal["density", "l1"] = "density",
    at: At,
    measured: Dropout,
) -> Tensor:
    """Drop entries at random, rescale by 1/density, then elect signs and merge as TIES does.

    `rescale: l1` gives the survivors the L1 norm of τᵢ instead, as mergekit does.
    """
    return base + elect_and_sum(measured.parts(base, experts, at), weight, normalize) * lambda_


@dataclass(frozen=True)
class Ranks:
    """Where the entries of an expert's τ stand within their rows: 0 for the smallest |τ|.

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
        own = torch.empty(order.shape, dtype=torch.int32, device=order.device)
        own.scatter_(1, order, falling.expand(order.shape))
        for digit, shift in zip(found, shifts, strict=True):
            digit[part] = (own.view(-1) >> shift & 0xFF).to(torch.uint8)
    return Ranks(found)


def _rows(view: View) -> Iterator[slice]:
    size = max(1, _ROWS // max(view.columns, 1)) * view.columns
    for start in range(0, view.base.numel(), max(size, 1)):
        yield slice(start, min(start + size, view.base.numel()))


class Pruning(NamedTuple):
    """DELLA's probabilities pᵢ = low + step · rank of keeping an entry, and the experts' factors.

    Attributes:
        ranks: the digits of the entries' ranks, for each expert.
        low: one per expert; 1 and more keep everything.
        step: one per expert.
        shares: one factor per expert.
        by_probability: 1 where survivors are divided by pᵢ, else 0.
    """

    ranks: Sequence[Sequence[Any]]
    low: Sequence[float]
    step: Sequence[float]
    shares: Sequence[float]
    by_probability: float

    def parts(self, base: Tensor, experts: Sequence[Tensor], at: At) -> list[Tensor]:
        """τᵢ ⊙ mᵢ, rescaled, times its share."""
        parts = []
        for index, (expert, share) in enumerate(zip(experts, self.shares, strict=True)):
            tau = expert - base
            rank = _number(self.ranks[index], tau)
            probability = rank * self.step[index] + self.low[index]
            divisor = (probability - 1) * self.by_probability + 1
            kept = _survivors(index, probability, at)
            parts.append(tau * kept / divisor.clamp(2.0**-32) * share)
        return parts


def _number(digits: Sequence[Tensor], like: Tensor) -> Tensor:
    """Ranks from their digits, in the dtype of `like`: exact below 2²⁴."""
    value = digits[0].to(like.dtype)
    for digit in digits[1:]:
        value = value * 256 + digit.to(like.dtype)
    return value


def _survivors(expert: int, probability: Tensor, at: At) -> Tensor:
    """Which entries of a slice are kept, each with a probability of its own; at 1 all are."""
    import torch

    bound = probability.float() * 2.0**32 - 2.0**31
    bound = bound.clamp(-(2.0**31), 2.0**31 - 128).to(torch.int32)
    return at.keep(expert, probability, bound) | (probability >= 1)


def pruned(
    view: View,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    rescale: str,
    at: Places,
    statistics: Sequence[Ranks] | None = None,
) -> Pruning:
    """Probabilities from density − ε to density + ε; ε shrinks where these would leave [0, 1]."""
    experts = range(len(weight))
    found = statistics or [ranks(view, expert) for expert in experts]
    reach = [max(min(e, d, 1 - d), 0.0) for e, d in zip(epsilon, density, strict=True)]
    if view.columns == 1:
        reach = [0.0 for _ in experts]
    low = [d - r for d, r in zip(density, reach, strict=True)]
    step = [2 * r / max(view.columns - 1, 1) for r in reach]
    plain = [w if d > 0 else 0.0 for w, d in zip(weight, density, strict=True)]
    entries = [[Entries(digit) for digit in one.digits] for one in found]
    pruning = Pruning(entries, low, step, plain, float(rescale == "probability"))
    if rescale != "l1":
        return pruning
    factors = [_l1_ratio(view, i, _pruned_masks(pruning, i, at)) for i in experts]
    return pruning._replace(shares=[w * f for w, f in zip(plain, factors, strict=True)])


def _pruned_masks(pruning: Pruning, expert: int, at: Places) -> Callable[[slice, Tensor], Tensor]:
    def mask(part: slice, tau: Tensor) -> Tensor:
        import torch

        low = torch.tensor(pruning.low[expert], dtype=tau.dtype)
        step = torch.tensor(pruning.step[expert], dtype=tau.dtype)
        rank = _number([digit.part(part) for digit in pruning.ranks[expert]], tau)
        return _survivors(expert, rank * step + low, at(part.start))

    return mask


def pruned_shares(
    view: View,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: str,
    at: Places,
    statistics: Sequence[Ranks] | None = None,
) -> Pruning:
    """The same with λwᵢ, divided by Σ wᵢ with `normalize` unless that is zero."""
    return pruned(
        view,
        weight=shares(view, weight=weight, lambda_=lambda_, normalize=normalize),
        density=density,
        epsilon=epsilon,
        rescale=rescale,
        at=at,
        statistics=statistics,
    )


Epsilon = Annotated[Sequence[float], PerExpert(0.15, low=0.0, high=0.5)]


@merge_method(
    reference="Deep et al. 2024, arXiv:2406.11617 (MagPrune), with task arithmetic",
    measure=pruned_shares,
    statistic=ranks,
    relative=True,
)
def della_linear(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    density: Density,
    epsilon: Epsilon,
    lambda_: Lambda = 1.0,
    normalize: bool = False,
    rescale: Literal["probability", "l1", "none"] = "probability",
    at: At,
    measured: Pruning,
) -> Tensor:
    """Drop entries at random, small ones more often; rescale each; then task arithmetic.

    Within a row (last dimension) the probability p of surviving grows linearly with the rank of
    |τ|, from density − ε to density + ε (the paper: ± ε/2). Survivors are divided by p, or brought
    to the L1 norm of τᵢ as mergekit does. ε is lessened where p would leave [0, 1].
    """
    parts = measured.parts(base, experts, at)
    return base + sum(parts[1:], parts[0])


@merge_method(
    reference="Deep et al. 2024, arXiv:2406.11617 (MagPrune), with TIES' sign election",
    measure=pruned,
    statistic=ranks,
    relative=True,
)
def della(
    base: Tensor,
    experts: Sequence[Tensor],
    *,
    weight: Weight,
    density: Density,
    epsilon: Epsilon,
    lambda_: Lambda = 1.0,
    normalize: bool = True,
    rescale: Literal["probability", "l1", "none"] = "probability",
    at: At,
    measured: Pruning,
) -> Tensor:
    """Drop entries as `della_linear` does, then elect signs and merge as TIES does."""
    return base + elect_and_sum(measured.parts(base, experts, at), weight, normalize) * lambda_
