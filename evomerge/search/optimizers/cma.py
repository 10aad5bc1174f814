"""CMA-ES, driven so that it neither waits for a generation nor forgets where it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.judging.scores import Scores
from evomerge.search.descent import AVERAGE, batch_for, small_batch_for
from evomerge.search.optimizers.base import Known, Optimizer, Proposal, ask_index, optimizer
from evomerge.search.optimizers.parts.mixed_cma import MixedCMA, gaussian_genes
from evomerge.search.spaces.genes import Domain, Genome
from evomerge.study.record import Descend

if TYPE_CHECKING:
    from cmaes import CMA, SepCMA

EDGE = 0.05
"""Distance that a beginning keeps from the walls, beyond which half of the samples would lie."""
SEPARABLE_ABOVE = 200
"""Numbers among the genes above which the covariance is kept diagonal: a trial takes O(n) instead
of O(n³), .1 ms of 1,000 genes instead of 480 (of 200, 6).
"""
COVARIANCE, DIAGONAL = "covariance", "diagonal"
"""What a study keeps of how it began; without it genes with levels keep the full covariance."""
DESCENTS, AVERAGED = "descents", "averaged"
"""What a study keeps of how it descends; without it as formerly."""
EVERY = 2
"""Of so many asks one is a descent, until there were enough."""
STEPS, SINGLE = 24, 48
"""Steps of a descent from the best so far, and of one whose steps are of one document."""
RATES = (0.025, 0.0125)
"""Of its steps: of the first such descent, and of all later ones."""
FORMER_EVERY, FORMER_STEPS, FORMER_RATES = 4, 12, (0.05, 0.025, 0.0125)
"""Those of studies that keep nothing of it, where a step takes more documents, and the last one
leads to the end."""


@optimizer("cma")
class CmaEs(Optimizer):
    """CMA-ES with restarts of doubled population (Auger & Hansen 2005, IPOP-CMA-ES).

    An update happens when a population's worth of results has arrived, in the order of their
    arrival, whichever asks they belong to: workers never wait. Results of proposals made before a
    restart do not enter the restarted distribution. Failures rank last (+inf).

    Where something is known, or was tried first (`initial`), the distribution begins at the best of
    it, with step `near`: openings choose the beginning, and are no samples of it. Where that is the
    end of a gradient descent, and no gene has levels, genes along which gradients were large vary
    less at first than the others: the covariance begins diagonal, at `search.descent.scales`.

    With `descents` some asks are short gradient descents from the best so far, at falling rates, on
    small batches, to the mean over their last steps; the distribution begins again at an end that
    is the best. Where the descents before the search ended clearly below what was known, gradients
    mislead: there are none then, and the distribution begins as where nothing is known. With
    `patience` it does so, too, where it stands still.

    Of more than 200 genes that are numbers the covariance is diagonal (SepCMA, Ros & Hansen 2008).

    Where a gene has levels, CatCMA with margin (Hamano et al. 2025, arXiv:2504.07884) takes the
    place of CMA-ES: whole numbers keep a margin of probability beside the mean's level, choices
    have a distribution of their own. Genes that exist for choices hardly made any more (the weights
    of an expert that is left out) rest until the choice comes back, so that the search goes on in
    the dimension that counts.
    """

    def __init__(
        self,
        domain: Domain,
        seed: int,
        *,
        sigma: Annotated[float, Field(gt=0, le=1)] = 0.2,
        near: Annotated[float, Field(gt=0, le=1)] = 0.1,
        population: Annotated[int, Field(ge=3)] | None = None,
        descents: Annotated[int, Field(ge=0)] = 0,
        patience: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        """Begin at the domain's start.

        Args:
            domain: the genes, where to begin, and how genomes recombine.
            seed: of every draw.
            sigma: step size of a beginning where nothing is known, and of restarts, as a share of
                each gene's range.
            near: the step size around the best that is known. Raise it where parents are far from
                good merges.
            population: λ, by default 4 + ⌊3 ln n⌋. Raise it where scores are noisy.
            descents: so many asks, every second until then, are short gradient descents from the
                best so far. Raise it where the search is long and gradients lead far.
            patience: after so many populations without a better trial, a search that began around
                the best begins as where nothing is known; after one, where the descents before the
                search led to no clearly better score. 0: it stays there.
        """
        if sum(gene.levels != 1 for gene in domain.genes) < 2:
            raise InputError("optimizer.kind: cma needs at least two genes; use 'random'")
        super().__init__(domain, seed)
        self._sigma, self._near = sigma, near
        self._best: tuple[tuple[bool, float], Genome] | None = None
        self._descents, self._averaged = descents, True
        self._misled, self._items = False, 0
        self._patience, self._since, self._wide = patience, 0, True  # results since the best
        self._waiting: set[int] = set()  # openings of which nothing was heard yet
        self._led: Scores | None = None  # the best end of the descents before the search
        self._known = -math.inf  # the best that was known before all openings
        self._begun = False
        self._population = population or 4 + math.floor(3 * math.log(domain.dimension))
        self._restarts = 0
        self._restarted_at = 0
        self._arrived: list[tuple[Genome, float]] = []
        self._scale: Genome | None = None
        mixed = domain.discrete.any()
        self._numbers = gaussian_genes(domain.genes) if mixed else domain.dimension
        self._diagonal = self._numbers > SEPARABLE_ABOVE
        self._strategy = self._start(np.clip(domain.initial, EDGE, 1 - EDGE), sigma)

    @override
    def remark(self) -> str | None:
        if self._numbers <= SEPARABLE_ABOVE:
            return None
        if not self._diagonal:
            return (
                f"full covariance of {self._numbers:,} genes, as the study was begun: the time for "
                "a trial grows with their cube"
            )
        return f"diagonal covariance, for there are more than {SEPARABLE_ABOVE} genes"

    @override
    def begun_with(self) -> dict[str, Any]:
        found: dict[str, Any] = {COVARIANCE: DIAGONAL} if self._diagonal else {}
        return {**found, DESCENTS: AVERAGED} if self._descents else found

    @override
    def go_on(self, begun_with: Mapping[str, Any]) -> None:
        self._averaged = begun_with.get(DESCENTS) == AVERAGED
        # genes without levels had the diagonal before studies kept this
        if self._diagonal and self.domain.discrete.any() and COVARIANCE not in begun_with:
            self._diagonal = False
            self._strategy = self._start(np.clip(self.domain.initial, EDGE, 1 - EDGE), self._sigma)

    @override
    def _begin(self, known: Sequence[Known]) -> None:
        self._begun = True
        self._waiting = set(range(len(self._openings)))
        for one in known:
            self._begin_at(one.genome, one.scores)
            self._known = max(self._known, one.scores.best_key[1])

    @override
    def descends(self, trials: int) -> tuple[Descend, int] | None:
        most = min(self._descents, math.ceil(trials / self._every))
        return (self._descent(0), most) if self._descents else None

    @override
    def descent_from(self, index: int, genome: Genome, parents: Sequence[int]) -> Descend | None:
        turn = self._turn(index)
        return None if turn is None else self._descent(turn)

    def _turn(self, index: int) -> int | None:
        """Return which descent ask `index` is, from 0; None where it is none."""
        place = index - len(self._openings)
        if self._misled or self._best is None or place < 0:
            return None
        turn, rest = divmod(place, self._every)
        return turn if not rest and turn < self._descents else None

    @property
    def _every(self) -> int:
        return EVERY if self._averaged else FORMER_EVERY

    def _descent(self, turn: int) -> Descend:
        rates = RATES if self._averaged else FORMER_RATES
        origin, rate = "the best so far", rates[min(turn, len(rates) - 1)]
        if not self._averaged:
            batch = batch_for(self._items)
            return Descend(origin, FORMER_STEPS, rate, batch, held_back=0.0, check=0)
        batch = small_batch_for(self._items)
        steps = STEPS if batch > 1 else SINGLE
        return Descend(origin, steps, rate, batch, held_back=0.0, check=0, average=AVERAGE)

    def _begin_at(self, genome: Genome, scores: Scores, scale: Genome | None = None) -> bool:
        """Move the beginning to a genome if it is better than all before it; return whether.

        `scale`: of its genes, where none is known of it.
        """
        if self._best and self._best[0] >= scores.best_key:
            return False
        self._best = scores.best_key, genome
        self._arrived = []
        mixed = self.domain.discrete.any()
        self._scale = None if mixed else self.domain.scales.get(genome.tobytes(), scale)
        self._strategy = self._start(np.clip(genome, EDGE, 1 - EDGE), self._near)
        self._wide = False
        return True

    def _begin_wide(self) -> None:
        """Begin as where nothing is known."""
        self._scale, self._arrived, self._wide = None, [], True
        self._strategy = self._start(np.clip(self.domain.initial, EDGE, 1 - EDGE), self._sigma)

    @override
    def _propose(self, rng: np.random.SeedSequence) -> tuple[Genome, tuple[int, ...]]:
        if self._turn(ask_index(rng)) is not None:
            assert self._best is not None
            return self._best[1], ()
        self._strategy.reseed_rng(int(rng.generate_state(1)[0]))
        sample = self._strategy.ask()
        return (sample if self._scale is None else np.clip(sample * self._scale, 0, 1)), ()

    @override
    def _learn(self, proposal: Proposal, scores: Scores | None) -> None:
        # 0. openings choose where it begins, and so do descents from the best
        better = scores is not None and (not self._best or scores.best_key > self._best[0])
        self._since = 0 if better else self._since + 1
        opening = self._begun and proposal.ask < len(self._openings)
        if opening or proposal.descent:
            scale = self._scale if proposal.descent else None
            begins = scores is not None and self._begin_at(proposal.genome, scores, scale)
            if self._descents and opening:
                begins = self._opened(proposal, scores) or begins
            if begins:
                self._restarted_at = self.tells + 1  # `tells` does not count this result yet
            return
        if (self._descents or self._patience) and scores and better:
            self._best = scores.best_key, proposal.genome
        # 1. results of proposals made before a restart do not count
        if proposal.tells < self._restarted_at:
            return
        if not self._wide and 0 < self._patience * self._population <= self._since:
            self._begin_wide()
            self._restarted_at = self.tells + 1  # `tells` does not count this result yet
            return
        # 2. losses: smaller is better, failures last
        loss = -scores.fitness if scores else math.inf
        sample = proposal.genome if self._scale is None else proposal.genome / self._scale
        self._arrived.append((sample, loss))
        # 3. update with every λ results, and restart when the distribution has converged
        if len(self._arrived) == self._strategy.population_size:
            self._strategy.tell(self._arrived)
            self._arrived = []
            if self._strategy.should_stop():
                self._restart()

    def _opened(self, proposal: Proposal, scores: Scores | None) -> bool:
        """Take in an opening; return whether the last of them shows that gradients mislead.

        They do where the best end of the descents before the search is more than its standard error
        below the best that is known; then the distribution begins as where nothing is. Where it is
        not as much above what was known, the patience is that of one population.
        """
        self._waiting.discard(proposal.ask)
        if scores is not None:
            self._items = max(self._items, scores.n)
            end = proposal.genome.tobytes() in self.domain.scales
            if end and (self._led is None or scores.best_key > self._led.best_key):
                self._led = scores
        if self._waiting or self._led is None or self._best is None:
            return False
        self._misled = self._best[0][1] > self._led.best_key[1] + self._led.se
        if self._misled:
            self._begin_wide()
        elif self._led.best_key[1] <= self._known + self._led.se:
            self._patience = min(self._patience, 1)
        return self._misled

    def _restart(self) -> None:
        """Restart with a doubled population from a random mean (IPOP)."""
        self._restarts += 1
        self._restarted_at = self.tells + 1  # `tells` does not count this result yet
        self._population *= 2
        self._scale, self._wide = None, True
        rng = np.random.default_rng(self._random(self._restarts, stream=1))
        self._strategy = self._start(rng.random(self.domain.dimension), self._sigma)

    def _start(self, mean: Genome, sigma: float) -> CMA | SepCMA | MixedCMA:
        """Begin a distribution over genomes divided by the scale, where its covariance is σ²·I."""
        # resampling until all genes fit is hopeless in high dimension; clip instead
        resampling = 10 if self.domain.dimension <= SEPARABLE_ABOVE else 1
        if self.domain.discrete.any():
            size = self._population
            genes, diagonal = self.domain.genes, self._diagonal
            return MixedCMA(genes, mean, sigma, size, resampling, diagonal=diagonal)
        from cmaes import CMA, SepCMA  # late: they import scipy.stats, which takes .5 s

        scale = np.ones(self.domain.dimension) if self._scale is None else self._scale
        kind = SepCMA if self._diagonal else CMA
        return kind(
            mean=mean / scale,
            sigma=sigma,
            bounds=np.tile([0.0, 1.0], (self.domain.dimension, 1)) / scale[:, None],
            n_max_resampling=resampling,
            seed=0,
            population_size=self._population,
        )
