"""Frank-Wolfe: descents that step towards one expert after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from evomerge.search.optimizers.base import optimizer
from evomerge.search.optimizers.gradient import Gradient
from evomerge.search.spaces.genes import Domain


@optimizer("frank_wolfe")
class FrankWolfe(Gradient):
    """FW-Merging (Chen et al. 2025, arXiv:2503.12649) in genes, for many experts of which few help.

    Every ask is a descent of Frank-Wolfe steps on fresh mini-batches: in each group of tensors the
    gradient picks the model, the base included, towards which the loss falls fastest, and the
    weights go a share rate · 2/(t + 2) of the way to that model alone. So what begins at the base
    holds no more experts than it made steps. The search over such descents is that of `gradient`:
    they begin at what is known, then again and again at the best so far, at smaller rates.
    """

    def __init__(
        self,
        domain: Domain,
        seed: int,
        *,
        steps: Annotated[int, Field(ge=1)] = 10,
        rate: Annotated[float, Field(gt=0, le=1)] = 0.3,
        batch: Annotated[int, Field(ge=1)] = 60,
        held_back: Annotated[float, Field(gt=0, lt=1)] = 0.2,
        check: Annotated[int, Field(ge=1)] = 2,
        patience: Annotated[int, Field(ge=1)] = 3,
    ) -> None:
        """Begin at the domain's starts.

        Args:
            domain: the genes, where to begin, and how genomes recombine.
            seed: of every draw.
            steps: the most steps of a descent.
            rate: the share of the way to the chosen models that a descent's first step goes.
            batch: fresh documents for each step; a document costs three items. A step is a choice
                among models, which takes more of them than a small step does.
            held_back: share of the search split that is kept aside, to see when to stop.
            check: the loss on what was held back is looked at every so many steps.
            patience: a descent stops when so many looks brought nothing better.
        """
        super().__init__(
            domain,
            seed,
            steps=steps,
            rate=rate,
            batch=batch,
            held_back=held_back,
            check=check,
            patience=patience,
        )
        self._asked = replace(self._asked, rule="frank_wolfe")
