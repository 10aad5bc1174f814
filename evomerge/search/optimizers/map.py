"""MAP: quadratic surrogates of every task, and the front on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import scipy  # its packages are imported when they are first used: they take .5 s
from pydantic import Field
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.judging import pareto
from evomerge.judging.scores import Scores, Values
from evomerge.search.optimizers.base import Known, Optimizer, Proposal, ask_index, optimizer
from evomerge.search.optimizers.parts.fronts import Goals, front_of
from evomerge.search.spaces.genes import Domain, Genome
from evomerge.search.surrogates.features import Features
from evomerge.search.surrogates.quadratic import Result, Surface, Surfaces, terms

MOST = 3
"""Surfaces are fitted to at most this many times the design, the latest results."""
SPACED = 2 / 3
"""Share of the design that fills the space; the Bayesian variant spends the rest elsewhere."""
NEIGHBOURS = 5
"""The number of nearest results whose errors stand for a point's."""
POOL = 256
"""Random points to choose from by those errors."""
TEMPERATURE = 0.07
"""Softmax temperature of that choice, in units of the largest; as in the authors' code."""
STEPS = 30
"""Most iterations of a climb."""
STEP = 1e-6
"""Finite difference of derivatives by genes."""
PENALTY = 20.0
"""Penalty of a broken constraint's chance, in units of the goals' standard deviation."""


@optimizer("map")
class Map(Optimizer):
    """MAP: quadratic surrogates per task, and proposals from their front (Li et al. 2024,
    arXiv:2406.07529).

    First a design is evaluated, a Sobol sequence over the genes' bounds, of as many recipes as a
    quadratic has coefficients. Then every task's mean is fitted by a quadratic of the genes, inside
    a sigmoid where it is a share, NSGA-III finds the front of the campaign's goals on the
    surrogates, and what lies on that front is proposed, one after the other. When as many results
    have come as the front has members, the surrogates are fitted again, and so on.

    Where the front has fewer members than are wanted, as that of one goal, which is a point, peaks
    are proposed beside it of surfaces that the results make likely (Thompson 1933), several goals
    being weighed at random: the search goes on where the surrogates are not sure. Whether
    constraints hold is fitted like a task; failures are left out.

    The Bayesian variant spends the last third of the design where the surrogates are off: where
    mean + ½ · standard deviation of their squared error is high. The paper takes both over bins of
    the sphere's angles, which many genes would leave empty; here the nearest results stand for a
    bin, and an error is that of the surface through the other results.
    """

    def __init__(
        self,
        domain: Domain,
        seed: int,
        *,
        design: Annotated[int, Field(ge=1)] | None = None,
        front: Annotated[int, Field(ge=1)] = 20,
        interactions: bool = True,
        bayesian: bool = False,
    ) -> None:
        """Begin with the design.

        Args:
            domain: the genes, where to begin, and how genomes recombine.
            seed: of every draw.
            design: recipes evaluated before the first front, by default as many as a quadratic of
                n genes has coefficients, (n + 1)(n + 2)/2.
            front: members proposed before the surrogates are fitted again.
            interactions: take products of genes among the terms; without, there are 2n + 1. Turn it
                off where there are more than some ten genes.
            bayesian: spend a third of the design where the surrogates are off.
        """
        choices = [gene.name for gene in domain.genes if gene.kind == "categorical" or gene.when]
        if choices:
            raise InputError(
                f"optimizer.kind: map fits quadratics, which choices such as {choices[0]!r} and "
                "what depends on them have none of; give them one value, or use 'cma' or 'nsga3'"
            )
        super().__init__(domain, seed)
        self._features = Features(domain)
        self._varies = np.array([gene.levels != 1 for gene in domain.genes], dtype=bool)
        self._genes = int(self._varies.sum())
        if not self._genes:
            raise InputError("optimizer.kind: map needs a gene to vary; use 'random'")
        fewest = terms(self._genes, interactions=interactions)
        if design is not None and design < fewest:
            raise InputError(
                f"optimizer.design: {design} is less than the {fewest} coefficients of a "
                f"quadratic of {self._genes} genes; leave it out, or write interactions: false"
            )
        self._design = design or fewest
        self._size = front
        self._interactions = interactions
        self._bayesian = bayesian
        self._results: list[Result] = []
        self._objectives_of: Callable[[Values], Values] | None = None
        self._surfaces: tuple[int, Surfaces] | None = None  # through so many results
        self._front: tuple[int, Genome] | None = None  # on the surfaces through so many

    @override
    def check_budget(self, trials: int) -> None:
        if trials > self._design:
            return
        ways = [f"budget.trials: {self._design + self._size}", "space.weights.granularity: model"]
        fewest = terms(self._genes, interactions=False)
        if fewest < self._design:
            ways.append(f"optimizer.interactions: false (for {fewest})")
        raise InputError(
            f"optimizer.kind: map evaluates {self._design} recipes for {self._genes} genes before "
            f"its first front, but the budget is of {trials} trials; write {', '.join(ways)}, or "
            "kind: cma"
        )

    @override
    def check_screening(self) -> None:
        """Refuse: whatever is proposed is what surrogates prefer."""
        raise InputError(
            "optimizer.screen: map proposes what its own surrogates prefer; leave screen out"
        )

    @override
    def state(self) -> dict[str, float]:
        """Record how far surrogates are off: squared errors as a share of the means' variance."""
        fitted = self._fitted
        return {} if fitted is None else {"missed": float(self._through(fitted).misses.mean())}

    @property
    def _fitted(self) -> int | None:
        """Return the number of results that surfaces go through now; None during the design."""
        beyond = len(self._results) - self._design
        return None if beyond < 0 else self._design + beyond // self._size * self._size

    @override
    def _begin(self, known: Sequence[Known]) -> None:
        """Learn nothing: surfaces go through a design that is spread evenly."""

    @override
    def _propose(self, rng: np.random.SeedSequence) -> tuple[Genome, tuple[int, ...]]:
        index, fitted = ask_index(rng), self._fitted
        # 1. the design: a Sobol sequence, in the Bayesian variant then where surfaces are off
        if fitted is None:
            spaced = not self._bayesian or len(self._results) < SPACED * self._design
            point = self._spaced(index) if spaced else self._doubtful(np.random.default_rng(rng))
        # 2. the front on the surfaces, one member after the other
        else:
            if self._front is None or self._front[0] != fitted:
                self._front = fitted, self._proposals(fitted)
            members = self._front[1]
            point = members[index % len(members)]
        # 3. genes with one level stand as in the domain's initial point
        genome = np.array(self.domain.initial, dtype=np.float64)
        genome[self._varies] = point
        return genome, ()

    @override
    def _learn(self, proposal: Proposal, scores: Scores | None) -> None:
        if scores is None or not np.isfinite([*scores.objectives, *scores.metrics.values()]).all():
            return
        # surfaces go through task means where the objective is known, else through objectives
        told = tuple(scores.metrics.values()) if scores.objectives_of else scores.objectives
        items = min((len(values) for values in scores.items.values()), default=scores.n)
        self._objectives_of = scores.objectives_of
        self._results.append(
            Result(
                self._features(proposal.genome),
                told,
                items,
                scores.objectives,
                max(0.0, scores.violation),
                scores.se,
            )
        )

    def _spaced(self, index: int) -> Genome:
        """Return point `index` of a scrambled Sobol sequence."""
        sequence = scipy.stats.qmc.Sobol(
            self._genes, rng=np.random.default_rng(self._random(0, stream=1))
        )
        if index:
            sequence.fast_forward(index)
        return np.asarray(sequence.random(1)[0])

    def _doubtful(self, rng: np.random.Generator) -> Genome:
        """Draw a point near which surfaces are off, by the authors' acquisition."""
        # 1. surfaces through the results so far, fitted anew every few
        count = len(self._results) - len(self._results) % NEIGHBOURS
        surfaces = self._through(max(count, NEIGHBOURS))
        pool = rng.random((POOL, self._genes))
        # 2. mean + ½ · standard deviation of the nearest results' squared errors
        nearest = scipy.spatial.distance.cdist(pool, surfaces.points).argsort(
            axis=1, kind="stable"
        )[:, :NEIGHBOURS]
        near = surfaces.misses[nearest]
        wanted = near.mean(axis=1) + 0.5 * near.std(axis=1)
        # 3. draw by a softmax
        chances = np.exp((wanted / wanted.max() - 1) / TEMPERATURE)
        return pool[rng.choice(POOL, p=chances / chances.sum())]

    def _through(self, count: int) -> Surfaces:
        """Fit surfaces to the latest of the first `count` results."""
        if self._surfaces is None or self._surfaces[0] != count:
            results = self._results[:count][-MOST * self._design :]
            self._surfaces = count, Surfaces.fit(results, interactions=self._interactions)
        return self._surfaces[1]

    def _proposals(self, count: int) -> Genome:
        """Find the front that the first `count` results promise, shape (members, genes)."""
        surfaces = self._through(count)
        rng = np.random.default_rng(self._random(count, stream=1))
        # 1. begin at the front of what was measured
        told = self._results[:count]
        objectives = np.array([result.objectives for result in told])
        broken = np.array([result.violation for result in told])
        best = np.stack([told[i].point for i in np.flatnonzero(pareto.front(objectives, broken))])
        discrete = self.domain.discrete[self._varies]
        # 2. NSGA-III on the expected surfaces
        expected = self._goals(surfaces, surfaces.tasks)
        members = front_of(expected, best, discrete, self._size, rng)
        # 3. where the front has fewer members: peaks of drawn surfaces, goals weighed at random
        spread = objectives.std(axis=0)
        scale = np.where(spread > 0, spread, 1.0)
        peaks = [
            _peak(
                self._goals(surfaces, surfaces.drawn(rng)),
                rng.dirichlet(np.ones(len(scale))) / scale,
                members[rng.integers(len(members))],
            )
            for _ in range(self._size - len(members))
        ]
        return np.stack([*members, *peaks])

    def _goals(self, surfaces: Surfaces, tasks: Sequence[Surface]) -> Goals:
        """Make the campaign's goals of the tasks' surfaces."""

        def goals(points: Genome) -> tuple[Values, Values]:
            means = np.stack([task(points) for task in tasks], axis=-1)
            aims = means if self._objectives_of is None else self._objectives_of(means)
            return aims, surfaces.violations(points)

        return goals


def _peak(goals: Goals, weights: Values, start: Genome) -> Genome:
    """Climb from `start` to a peak of weighed goals, less a penalty for broken constraints."""

    def loss(point: Genome) -> tuple[float, Genome]:
        around = np.vstack([point, point + STEP * np.eye(len(point))])
        found, broken = goals(around)
        values = PENALTY * broken - found @ weights
        return float(values[0]), (values[1:] - values[0]) / STEP

    bounds = [(0.0, 1.0)] * len(start)
    options = {"maxiter": STEPS}
    found = scipy.optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    return np.clip(found.x, 0.0, 1.0)
