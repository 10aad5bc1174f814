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
    ) -> None:
        """`population`: members of the archive; `split`: children change parents at a cut;
        `mutation`: σ of the noise on genes; `warmup`: asks before the loop; all as in `m2n2`.
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
        )
