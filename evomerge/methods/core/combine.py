"""Combiners: two ways to add up task vectors that were made sparse, and their products.

TIES, DARE, DELLA, breadcrumbs and task arithmetic are each a sparsifier (`sparsify`) followed by
one of these; their methods are such products, each in its own file: `product`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from evomerge.methods.core.masks import At
from evomerge.methods.core.parameters import Lambda, Parameter, Weight, parameters_of
from evomerge.methods.core.registry import REGISTRY, Method
from evomerge.methods.core.slices import traced
from evomerge.methods.core.sparsify import Sparsifier, Whole
from evomerge.methods.core.view import Tensor, View


@dataclass(frozen=True)
class Combiner:
    """A way to add up sparse task vectors.

    Attributes:
        merge: from the base and each expert's part (its τ, sparse, times its share) to the merged
            tensor; its keyword-only arguments are the parameters.
        shares: from the same parameters to one factor per expert.
    """

    merge: Callable[..., Tensor]
    shares: Callable[..., Sequence[float]]


def shares(*, weight: Sequence[float], lambda_: float, normalize: bool) -> Sequence[float]:
    """Return λwᵢ, divided by Σ wᵢ with `normalize` unless that is zero."""
    divisor = math.fsum(weight)
    scale = lambda_ / divisor if normalize and abs(divisor) >= 1e-8 else lambda_
    return [scale * value for value in weight]


def _sum(
    base: Tensor,
    parts: Sequence[Tensor],
    *,
    weight: Weight,
    lambda_: Lambda = 1.0,
    normalize: bool = False,
) -> Tensor:
    return base + sum(parts[1:], parts[0])


def _weights(*, weight: Sequence[float], **_: Any) -> Sequence[float]:
    return list(weight)


def _election(
    base: Tensor,
    parts: Sequence[Tensor],
    *,
    weight: Weight,
    lambda_: Lambda = 1.0,
    normalize: bool = True,
) -> Tensor:
    return base + elect_and_sum(parts, weight, normalize) * lambda_


weighted_sum = Combiner(_sum, shares)
"""θ₀ + λ Σ wᵢτᵢ, divided by Σ wᵢ with `normalize` (task arithmetic)."""

sign_election = Combiner(_election, _weights)
"""θ₀ + λ times the weighted sum, or mean, of the entries that have the elected sign (TIES)."""


def elect_and_sum(parts: Sequence[Tensor], weight: Sequence[float], normalize: bool) -> Tensor:
    """Elect the sign of every entry and add the parts that have it (TIES, steps 2 and 3).

    Args:
        parts: wᵢτᵢ, sparse, of one shape.
        weight: wᵢ; `normalize` divides by the sum of those that took part, entry by entry.
    """
    import torch

    # step 2: the sign of the sum; zero counts as positive
    sign = sign_of(sum(parts[1:], parts[0]))
    # step 3: the disjoint sum, its sign taken off, and the weights that took part in it
    total = torch.zeros_like(parts[0])
    divisor = torch.zeros_like(parts[0])
    for value, part in zip(weight, parts, strict=True):
        size = part * sign
        agrees = is_positive(size)
        total = total + size * agrees
        divisor = divisor + agrees * value
    total = total * sign
    return total / (divisor + is_zero(divisor)) if normalize else total


def is_positive(values: Tensor) -> Tensor:
    """Return 1 for numbers above 0, 0 for others, in their dtype."""
    # uncompiled, comparisons and `where` take many times as long; compiled, half as long
    return (values > 0).to(values.dtype) if traced(values) else values.clamp(min=0).sign()


def sign_of(values: Tensor) -> Tensor:
    """Return -1 for negative numbers, 1 for others."""
    return 1 - 2 * ((values < 0).to(values.dtype) if traced(values) else is_positive(-values))


def is_zero(values: Tensor) -> Tensor:
    """Return 1 for zeros, 0 for others."""
    return (values == 0).to(values.dtype) if traced(values) else 1 - values.abs().sign()


class Kept(NamedTuple):
    """The entries that each expert keeps, and what they are multiplied by.

    Attributes:
        experts: one `Sparse` per expert; none where nothing is dropped.
        shares: the combiner's, times the sparsifier's `factors`.
        factors: one per expert; none for 1.
    """

    experts: Sequence[Any]
    shares: Sequence[float]
    factors: Sequence[float]


def product(
    name: str, sparsify: Sparsifier, combine: Combiner, *, reference: str, about: str
) -> Method:
    """Register the merge method that makes task vectors sparse and then combines them.

    Args:
        about: the method's docstring.
    """
    common = parameters_of(combine.merge)
    keywords = [parameter.keyword for parameter in common.values()]

    def measure(view: View | None, *, statistics: Any = None, **given: Any) -> Kept:
        kept, factors = sparsify(view, given, statistics)
        return shared(Kept(kept, (), factors), **given)

    def shared(kept: Kept, **given: Any) -> Kept:
        plain = combine.shares(**{keyword: given[keyword] for keyword in keywords})
        if not kept.factors:
            return kept._replace(shares=plain)
        # 0, not −0, where a negative weight meets an expert of which nothing is kept
        own = [share * f if f else 0.0 for share, f in zip(plain, kept.factors, strict=True)]
        return kept._replace(shares=own)

    def merge(
        base: Tensor,
        experts: Sequence[Tensor],
        *,
        measured: Kept,
        at: At | None = None,
        **given: Any,
    ) -> Tensor:
        parts = [
            kept.of(expert - base, at, i) * measured.shares[i]
            for i, (kept, expert) in enumerate(
                zip(measured.experts or [Whole()] * len(experts), experts, strict=True)
            )
        ]
        return combine.merge(base, parts, **{keyword: given[keyword] for keyword in keywords})

    merge.__name__ = merge.__qualname__ = name
    merge.__doc__ = about
    method = Method(
        name=name,
        function=merge,
        parameters=MappingProxyType(_joined(common, sparsify.parameters)),
        reference=reference,
        measure=measure,
        statistic=sparsify.statistic,
        needs_position=sparsify.random,
        relative=True,
        differentiable_in=tuple(p.name for p in common.values() if p.type is float),
        remeasure=shared,
        of_parameters=sparsify.of_parameters,
    )
    return REGISTRY.add(name, method)


def _joined(common: Mapping[str, Parameter], own: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Join the combiner's and the sparsifier's parameters, those with a value per expert first.

    The order is that of a campaign's genes, and therefore of recorded genomes.
    """
    every = {**common, **own}
    each = {name: parameter for name, parameter in every.items() if parameter.per_expert}
    return each | every
