"""`Gene` and `Domain`: all that an optimizer sees of a search space."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Genome = NDArray[np.float64]
"""One number in [0, 1] per gene, in the space's order."""

Value = bool | int | float | str
"""A gene's natural value."""


@dataclass(frozen=True)
class Condition:
    """A gene exists only where gene `gene` has one of `values`."""

    gene: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Gene:
    """One searched coefficient or choice, and how a genome's entry u in [0, 1] stands for it.

    It exists only where every condition of `when` holds. A float runs from `low` at 0 to `high` at
    1, linearly, or by its logarithm when `log`. An int from `low` to `high` and a categorical of
    `choices` divide [0, 1] into equal cells.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    kind: Literal["float", "int", "categorical"] = "float"
    log: bool = False
    choices: tuple[Value, ...] = ()
    when: tuple[Condition, ...] = ()

    def exists(self, active: Mapping[str, Value]) -> bool:
        """Return whether it exists beside the values of the active genes that stand before it."""
        return all(active.get(condition.gene) in condition.values for condition in self.when)

    @property
    def levels(self) -> int | None:
        """The number of values it can take; None when it is continuous."""
        if self.kind == "float":
            return None
        return len(self.choices) if self.kind == "categorical" else int(self.high - self.low) + 1

    def value(self, unit: float) -> Value:
        """The natural value of a genome's entry; entries outside [0, 1] are clipped."""
        unit = min(1.0, max(0.0, float(unit)))
        if self.levels is not None:
            level = min(int(unit * self.levels), self.levels - 1)
            return self.choices[level] if self.choices else int(self.low) + level
        if self.log:
            return self.low * (self.high / self.low) ** unit
        return self.low + (self.high - self.low) * unit

    def slope(self, unit: float) -> float:
        """Return d value/d entry at an entry of the genome; 0 where there are levels."""
        if self.levels is not None:
            return 0.0
        if self.log:
            return float(self.value(unit)) * math.log(self.high / self.low)
        return self.high - self.low

    def unit(self, value: Value) -> float:
        """The genome's entry for a natural value, clipped to [0, 1]; of a cell, its middle.

        Raises:
            ValueError: a categorical has no such choice.
        """
        if self.levels is not None:
            level = self.choices.index(value) if self.choices else int(value) - int(self.low)
            return (min(max(level, 0), self.levels - 1) + 0.5) / self.levels
        number = float(value)
        if self.log:
            unit = math.log(max(number, self.low) / self.low) / math.log(self.high / self.low)
        else:
            unit = (number - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, unit))


def distribution(gene: Gene) -> BaseDistribution:
    """Return the Optuna distribution over a gene's natural values."""
    import optuna.distributions as of_optuna

    if gene.kind == "categorical":
        return of_optuna.CategoricalDistribution(gene.choices)
    if gene.kind == "int":
        return of_optuna.IntDistribution(int(gene.low), int(gene.high))
    return of_optuna.FloatDistribution(gene.low, gene.high, log=gene.log)


class Domain:
    """Genes with a beginning; what every optimizer needs, and all that it gets.

    Attributes:
        genes: in genome order.
        initial: where a search begins, shape (dimension,).
        starts: genomes to try before the optimizer's own proposals, in order.
        seeds: source name → the genome that stands for it, where there is one.
        scales: of starts that gradients led to, by their bytes: how far each gene may vary there,
            shape (dimension,), relative to the others.
        loss: a loss as gradients told it, genomes (n, dimension) → (n,); None where none did.
    """

    def __init__(
        self,
        genes: Sequence[Gene],
        initial: Genome | None = None,
        starts: Sequence[Genome] = (),
        seeds: dict[str, Genome] | None = None,
    ) -> None:
        """`initial`: by default the middle of the unit cube."""
        self.genes = tuple(genes)
        self.initial = np.full(len(self.genes), 0.5) if initial is None else initial
        self.starts = tuple(starts)
        self.seeds = dict(seeds or {})
        self.scales: Mapping[bytes, NDArray[np.float64]] = {}
        self.loss: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None

    @property
    def dimension(self) -> int:
        """Number of genes."""
        return len(self.genes)

    @cached_property
    def discrete(self) -> NDArray[np.bool_]:
        """Mask of the genes that have levels, whose distance means nothing; shape (dimension,)."""
        return np.array([gene.levels is not None for gene in self.genes], dtype=bool)

    @property
    def cuts(self) -> Sequence[int]:
        """Genome indices at which a crossover may split, rising: where a tensor group begins."""
        return range(self.dimension)

    def params(self, genome: Genome) -> dict[str, Value]:
        """Natural values by gene name, inactive genes left out."""
        values = {g.name: g.value(u) for g, u in zip(self.genes, genome, strict=True)}
        active: dict[str, Value] = {}
        for gene in self.genes:  # a condition's gene stands before those it decides on
            if gene.exists(active):
                active[gene.name] = values[gene.name]
        return active

    def genome_of(self, params: Mapping[str, Value]) -> Genome:
        """The genome of natural values by gene name; genes without one stand as in `initial`."""
        return np.array(
            [
                gene.unit(params[gene.name]) if gene.name in params else unit
                for gene, unit in zip(self.genes, self.initial, strict=True)
            ]
        )

    def recombine(self, a: Genome, b: Genome, split: int, weight: float) -> Genome:
        """The child of `a` and `b`: `weight` of a's side before genome index `split`, 1 − `weight`
        from there on (M2N2, arXiv:2508.16204, eq. 3 with lerp for SLERP).

        Discrete genes come from the parent whose share is the larger.
        """
        share = np.where(np.arange(self.dimension) < split, weight, 1 - weight)
        mixed = share * a + (1 - share) * b
        return np.where(self.discrete, np.where(share >= 0.5, a, b), mixed)

    def statistics(self, genome: Genome) -> dict[str, float]:
        """Measures of a genome that need no evaluation, by name (for MAP-Elites' axes)."""
        return {}
