"""A plain genetic algorithm: M2N2 without competition and without attraction."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from evomerge.search.optimizers.base import optimizer
from evomerge.search.optimizers.m2n2 import Competition
from evomerge.search.spaces.genes import Domain


@optimizer("ga")
class Genetic(Competition):
    """A steady-state genetic algorithm: m2n2 with α = 0 and parents drawn by fitness alone."""

    def __init__(
        self,
        domain: Domain,
        seed: int,
        *,
        population: Annotated[int, Field(ge=2)] = 15,
        split: bool = True,
        mutation: Annotated[float, Field(ge=0, le=1)] = 0.05,
        warmup: Annotated[int, Field(ge=0)] | None = None,
        gradient: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        """Begin with an empty archive.

        Args:
            domain: the genes, where to begin, and how genomes recombine.
            seed: of every draw.
            population: the number of members.
            split: cross over at a random cut of the model's depth; without it, gene by gene.
            mutation: σ of the noise on genes, as a share of each gene's range.
            warmup: results to wait for before members breed, by default as many as there are.
            gradient: the probability that a child then descends by gradient, three steps on the
                task that its first parent is worst at.
        """
        super().__init__(
            domain,
            seed,
            population=population,
            alpha=0.0,
            attraction=False,
            split=split,
            mutation=mutation,
            warmup=warmup,
            gradient=gradient,
        )
