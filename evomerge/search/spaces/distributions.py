"""Genes as Optuna's distributions, for its params and its samplers."""

from __future__ import annotations

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from evomerge.search.spaces.genes import Gene


def distribution(gene: Gene) -> BaseDistribution:
    """The Optuna distribution over a gene's natural values."""
    if gene.kind == "categorical":
        return CategoricalDistribution(gene.choices)
    if gene.kind == "int":
        return IntDistribution(int(gene.low), int(gene.high))
    return FloatDistribution(gene.low, gene.high, log=gene.log)
