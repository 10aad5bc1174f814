"""CatCMA with margin on the unit cube: `cmaes.CatCMAwM` spoken to in genomes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from cmaes import CatCMAwM

from evomerge.search.domain import Gene, Genome


class MixedCMA:
    """CatCMA with margin (Hamano et al. 2025, arXiv:2504.07884) over genomes, ask and tell.

    A continuous gene is a Gaussian variable on [0, 1]. An int of three levels or more is one too,
    rounded to the middles of its cells: their thresholds are the cells' borders, so the genome's
    entry is the sample itself. Categoricals, and ints of two levels as the library advises, have a
    distribution over their levels; the entry is the middle of the cell. What the strategy is told
    it reads off the genome, so a replay brings it to the same state bit for bit.
    """

    def __init__(
        self, genes: Sequence[Gene], mean: Genome, sigma: float, population: int, resampling: int
    ) -> None:
        """`mean`: shape (dimension,), where the Gaussian begins; `sigma`: its step size; both on
        the unit cube. `resampling`: how often a sample outside the cube is drawn again before it is
        clipped.
        """
        self._start = mean.copy()
        self._levels = np.array([gene.levels or 0 for gene in genes])
        kinds = np.array([_kind(gene) for gene in genes])
        self._continuous = np.flatnonzero(kinds == "continuous")
        self._ordered = np.flatnonzero(kinds == "ordered")
        self._choices = np.flatnonzero(kinds == "choices")
        self._gaussian = np.concatenate([self._continuous, self._ordered])
        self._resampling = resampling
        cells = [(np.arange(k) + 0.5) / k for k in self._levels[self._ordered]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self._strategy = CatCMAwM(
                x_space=np.tile([0.0, 1.0], (len(self._continuous), 1)),
                z_space=cells,
                c_space=list(self._levels[self._choices]),
                population_size=population,
                mean=mean[self._gaussian],
                sigma=sigma,
                cov=np.eye(len(self._gaussian)),
                seed=0,
            )

    @property
    def population_size(self) -> int:
        """λ, how many results make a generation."""
        return self._strategy.population_size

    def reseed_rng(self, seed: int) -> None:
        """Let the next ask depend on `seed` and the distribution alone."""
        self._strategy.reseed_rng(seed)

    def ask(self) -> Genome:
        """A genome, shape (dimension,)."""
        for _ in range(self._resampling):
            sample = self._strategy.ask()
            if sample.x is None or (sample.x == sample._v_raw[: sample.x.size]).all():
                break
        genome = self._start.copy()
        if len(self._gaussian):
            genome[self._gaussian] = np.clip(sample._v_raw, 0.0, 1.0)
        if len(self._choices):
            genome[self._choices] = (sample.c.argmax(1) + 0.5) / self._levels[self._choices]
        return genome

    def tell(self, results: list[tuple[Genome, float]]) -> None:
        """Update the distribution with λ genomes and their losses; +inf for failures."""
        solutions = [(self._solution(genome), loss) for genome, loss in results]
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):
            # Its penalty for leaving the box wants the losses' spread, which may be none yet; no
            # genome ever leaves the box, so nothing but the warning comes of it.
            warnings.simplefilter("ignore", RuntimeWarning)
            self._strategy.tell(solutions)

    def should_stop(self) -> bool:
        """Whether the Gaussian part has converged, diverged or stalled."""
        return bool(len(self._gaussian)) and self._strategy.should_stop()

    def _solution(self, genome: Genome) -> CatCMAwM.Solution:
        entries = genome[self._choices]
        levels = self._levels[self._choices]
        chosen = np.minimum((entries * levels).astype(int), levels - 1)
        one_hot = np.arange(levels.max(initial=0)) == chosen[:, None]
        return CatCMAwM.Solution(c=one_hot, _v_raw=genome[self._gaussian])


def _kind(gene: Gene) -> str:
    if gene.levels is None:
        return "continuous"
    if gene.levels == 1:
        return "fixed"
    return "ordered" if gene.kind == "int" and gene.levels > 2 else "choices"
