"""CatCMA with margin on the unit cube: `cmaes.CatCMAwM` spoken to in genomes.

The library's public interface neither takes a sample back from a record nor starts over fewer
variables with what was learnt, so some of its private attributes are used, in this file `_v_raw`,
`_mean`, `_sigma`, `_C`, `_qmin` and `OF_CHOICES`, others in `diagonal_cma`. `CMAES` is the version
that they were read in; the tests fail with another one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evomerge.search.spaces.genes import Gene, Genome

if TYPE_CHECKING:
    from cmaes import CatCMAwM

    from evomerge.search.optimizers.parts.diagonal_cma import DiagonalCatCMAwM

CMAES = "0.13"
"""The minor version of cmaes that this file holds for."""

CLOSED, OPEN = 1.25, 2.0
"""A condition is closed when its probability has fallen to `CLOSED` times the margin that the
strategy keeps, and open again above `OPEN` times that, or above one half."""

OF_CHOICES = ("_q", "_s", "_Delta", "_gamma", "_delta", "_eps")
"""The attributes that hold what `CatCMAwM` has learnt of its categorical variables."""


class MixedCMA:
    """CatCMA with margin (Hamano et al. 2025, arXiv:2504.07884) over genomes, ask and tell.

    A continuous gene is a Gaussian variable on [0, 1]. An int of three levels or more is one too,
    rounded to the middles of its cells: their thresholds are the cells' borders, so the genome's
    entry is the sample itself. Categoricals, and ints of two levels as the library advises, have a
    distribution over their levels; the entry is the middle of the cell. What the strategy is told
    it reads off the genome, so a replay brings it to the same state bit for bit.

    Continuous genes that exist for choices which have come to be hardly ever made (the weights of
    an expert that is left out, the parameters of another method) rest at their mean until the
    choice comes up again: the strategy's pace falls with the number of its variables, those too
    that count for nothing.
    """

    def __init__(
        self,
        genes: Sequence[Gene],
        mean: Genome,
        sigma: float,
        population: int,
        resampling: int,
        *,
        diagonal: bool = False,
    ) -> None:
        """Begin a distribution over genomes.

        Args:
            genes: of the genomes.
            mean: where the Gaussian begins, on the unit cube, shape (dimension,).
            sigma: its step size there.
            population: λ.
            resampling: how often a sample outside the cube is drawn again before it is clipped.
            diagonal: whether its covariance is kept diagonal.
        """
        self._genes = genes
        self._mean = mean.copy()
        self._sigma = sigma
        self._population = population
        self._resampling, self._diagonal = resampling, diagonal
        self._levels = np.array([gene.levels or 0 for gene in genes])
        kinds = np.array([_kind(gene) for gene in genes])
        self._floats = np.flatnonzero(kinds == "continuous")
        self._ordered = np.flatnonzero(kinds == "ordered")
        self._choices = np.flatnonzero(kinds == "choices")
        self._rows = {genes[int(gene)].name: row for row, gene in enumerate(self._choices)}
        self._continuous = self._floats
        self._gaussian = np.concatenate([self._continuous, self._ordered])
        ones = np.ones(len(self._gaussian))
        self._strategy = self._start(sigma, ones if diagonal else np.diag(ones))

    def _start(self, sigma: float, covariance: NDArray[np.float64]) -> CatCMAwM | DiagonalCatCMAwM:
        """Make a strategy over the genes that do not rest; `covariance`: (n, n), or (n,) of it."""
        # late: they import scipy.stats, which takes .5 s
        from cmaes import CatCMAwM

        from evomerge.search.optimizers.parts.diagonal_cma import DiagonalCatCMAwM

        kind, known = (DiagonalCatCMAwM, "variances") if self._diagonal else (CatCMAwM, "cov")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return kind(
                x_space=np.tile([0.0, 1.0], (len(self._continuous), 1)),
                z_space=[(np.arange(k) + 0.5) / k for k in self._levels[self._ordered]],
                c_space=list(self._levels[self._choices]),
                population_size=self._population,
                mean=self._mean[self._gaussian],
                sigma=sigma,
                seed=0,
                **{known: covariance},
            )

    @property
    def population_size(self) -> int:
        """λ, the number of results of a generation."""
        return self._population

    @property
    def resting(self) -> int:
        """The number of continuous genes that rest."""
        return len(self._floats) - len(self._continuous)

    def reseed_rng(self, seed: int) -> None:
        """Let the next ask depend on `seed` and the distribution alone."""
        self._strategy.reseed_rng(seed)

    def ask(self) -> Genome:
        """Sample a genome, shape (dimension,)."""
        # 1. draw a sample, again while a continuous gene lies outside the cube
        for _ in range(self._resampling):
            sample = self._strategy.ask()
            if sample.x is None or (sample.x == sample._v_raw[: sample.x.size]).all():
                break
        # 2. write it down as a genome: resting genes at their mean, choices at their cell's middle
        genome = np.clip(self._mean, 0.0, 1.0)
        if len(self._gaussian):
            genome[self._gaussian] = np.clip(sample._v_raw, 0.0, 1.0)
        if len(self._choices):
            genome[self._choices] = (sample.c.argmax(1) + 0.5) / self._levels[self._choices]
        return genome

    def tell(self, results: list[tuple[Genome, float]]) -> None:
        """Update the distribution with λ genomes and their losses; +inf for failures."""
        # 1. read the samples off the genomes and update the distribution
        solutions = [(self._solution(genome), loss) for genome, loss in results]
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):
            # Its penalty for leaving the box wants the losses' spread, which may be none yet; no
            # genome ever leaves the box, so nothing but the warning comes of it.
            warnings.simplefilter("ignore", RuntimeWarning)
            self._strategy.tell(solutions)
        # 2. rest the genes whose choice is hardly made any more, wake those whose choice is back
        searched = set(self._continuous.tolist())
        counts = [self._counts(gene, gene not in searched) for gene in self._floats.tolist()]
        awake = self._floats[np.array(counts, dtype=bool)]
        if len(awake) and not np.array_equal(awake, self._continuous):
            self._continue_with(awake)

    def should_stop(self) -> bool:
        """Return whether the Gaussian part has converged, diverged or stalled."""
        return bool(len(self._gaussian)) and self._strategy.should_stop()

    def _solution(self, genome: Genome) -> CatCMAwM.Solution:
        entries = genome[self._choices]
        levels = self._levels[self._choices]
        chosen = np.minimum((entries * levels).astype(int), levels - 1)
        one_hot = np.arange(levels.max(initial=0)) == chosen[:, None]
        return self._strategy.Solution(c=one_hot, _v_raw=genome[self._gaussian])

    def _counts(self, gene: int, rests: bool) -> bool:
        """Say whether a gene is searched: no condition is closed; of one at rest, all are open."""
        for condition in self._genes[gene].when:
            row = self._rows.get(condition.gene)
            if row is None:
                continue  # an ordered int, whose levels have no probabilities of their own
            # the probability that the condition holds, against the least that the margin leaves it
            decides = self._genes[self._choices[row]]
            levels = [int(decides.unit(v) * (decides.levels or 1)) for v in condition.values]
            least = len(levels) * self._strategy._qmin[row]
            bar = min(OPEN * least, 0.5) if rests else CLOSED * least
            if self._strategy._q[row, levels].sum() <= bar:
                return False
        return True

    def _continue_with(self, awake: NDArray[np.int64]) -> None:
        """Hand what was learnt of these genes, and of all choices, to a strategy over them; genes
        that rested are as wide again as in the beginning.
        """
        # 1. keep mean, step size and covariance of the genes that were searched
        before, genes = self._strategy, self._gaussian
        self._mean[genes] = before._mean
        variances = np.full(len(self._mean), (self._sigma / before._sigma) ** 2)
        # 2. start over those that are awake now
        self._continuous = awake
        self._gaussian = np.concatenate([awake, self._ordered])
        if self._diagonal:
            variances[genes] = np.diag(before._C)
            covariance = variances[self._gaussian]
        else:
            whole = np.diag(variances)
            whole[np.ix_(genes, genes)] = before._C
            covariance = whole[np.ix_(self._gaussian, self._gaussian)]
        self._strategy = self._start(before._sigma, covariance)
        # 3. hand on what was learnt of the choices
        for name in OF_CHOICES:
            setattr(self._strategy, name, getattr(before, name))


def gaussian_genes(genes: Sequence[Gene]) -> int:
    """Count the genes that are variables of the Gaussian: continuous, and ints of many levels."""
    return sum(_kind(gene) in ("continuous", "ordered") for gene in genes)


def _kind(gene: Gene) -> str:
    if gene.levels is None:
        return "continuous"
    if gene.levels == 1:
        return "fixed"
    return "ordered" if gene.kind == "int" and gene.levels > 2 else "choices"
