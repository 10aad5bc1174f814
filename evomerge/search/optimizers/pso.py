"""Particle swarm optimization as Model Swarms sets it up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field
from typing_extensions import override

from evomerge.judging.scores import Scores
from evomerge.search.optimizers.base import Known, Optimizer, Proposal, ask_index, optimizer
from evomerge.search.optimizers.parts.variation import SPREAD, gaussian_mutation
from evomerge.search.spaces.genes import Domain, Genome

Share = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class _Seen:
    """A scored genome, its key for `best so far`, and the ask that proposed it."""

    genome: Genome
    best_key: tuple[bool, float]
    ask: int


@dataclass
class _Particle:
    """A particle: place, velocity, best, and moves since the best improved."""

    at: _Seen
    velocity: Genome
    best: _Seen
    stale: int = 0


@optimizer("pso")
class ParticleSwarm(Optimizer):
    """Model Swarms (arXiv:2410.11163): particles drawn to bests and driven from the worst.

    v ← r_v·inertia·v + r_p·cognitive·(p − x) + r_g·social·(g − x) + r_w·repel·(x − w), divided by
    the sum of the r's times their weights, where p is the particle's best, g the swarm's, w the
    worst seen, and each r is uniform on [0, 1]; then x ← x + λ·v, clipped to the unit cube. λ
    begins at `step` and shrinks by `decay` with each swarm's worth of results, down to
    `least_step`. A particle that has not improved for `patience` moves returns to its best and
    rests (v = 0).

    Ask k moves particle k mod N from where it was last seen, so workers never wait. The velocity is
    the displacement that came about, over λ. Bests are measured ones, once there are any, whatever
    is estimated; what is known before the first ask is among them. Particles begin at the domain's
    starts, then between two sources of the domain (as the paper interpolates its experts), one of
    which is the best that is known, if anything is; without sources around it (σ = 0.2), or
    uniformly. After a failure a particle stays where it was.
    """

    def __init__(
        self,
        domain: Domain,
        seed: int,
        *,
        particles: Annotated[int, Field(ge=2)] = 20,
        inertia: Share = 0.4,
        cognitive: Share = 0.3,
        social: Share = 0.3,
        repel: Share = 0.3,
        step: Annotated[float, Field(gt=0)] = 1.0,
        decay: Annotated[float, Field(gt=0, le=1)] = 0.95,
        least_step: Annotated[float, Field(gt=0)] = 0.1,
        patience: Annotated[int, Field(ge=1)] = 10,
    ) -> None:
        """Begin with the particles at rest.

        Args:
            domain: the genes, where to begin, and how genomes recombine.
            seed: of every draw.
            particles: N, the number of particles.
            inertia: weight of the velocity so far.
            cognitive: weight of the pull to the particle's own best.
            social: weight of the pull to the swarm's best.
            repel: weight of the push from the worst seen.
            step: λ at the beginning.
            decay: the factor of λ with each swarm's worth of results.
            least_step: the least λ.
            patience: moves without improvement before a particle starts over from its best.
        """
        super().__init__(domain, seed)
        self._count = particles
        self._shares = np.array([inertia, cognitive, social, repel])
        self._step, self._decay, self._least_step = step, decay, least_step
        self._patience = patience
        self._swarm: dict[int, _Particle] = {}
        self._best: _Seen | None = None
        self._worst: _Seen | None = None
        self._best_known: Genome | None = None

    @override
    def _begin(self, known: Sequence[Known]) -> None:
        for number, one in enumerate(known, 1):
            self._remember(_Seen(one.genome, one.scores.best_key, -number))
        self._best_known = self._best.genome if self._best else None

    @override
    def members(self) -> Sequence[int]:
        return list(dict.fromkeys(p.best.ask for p in self._swarm.values()))

    @override
    def _propose(self, rng: np.random.SeedSequence) -> tuple[Genome, tuple[int, ...]]:
        generator = np.random.default_rng(rng)
        # 1. ask k moves particle k mod N; one that is not placed yet begins
        particle = self._swarm.get(ask_index(rng) % self._count)
        if particle is None or self._best is None or self._worst is None:
            return self._beginning(generator), ()
        # 2. the velocity: inertia, own best, swarm's best, away from the worst (alg. 1)
        x = particle.at.genome
        pulls = np.stack(
            [
                particle.velocity,
                particle.best.genome - x,
                self._best.genome - x,
                x - self._worst.genome,
            ]
        )
        weights = generator.random(len(pulls)) * self._shares
        velocity = weights @ pulls / (weights.sum() or 1.0)
        # 3. step by λ along it, clipped to the cube
        parents = dict.fromkeys([particle.at.ask, particle.best.ask, self._best.ask])
        return np.clip(x + self._length(self.tells) * velocity, 0.0, 1.0), tuple(parents)

    @override
    def _learn(self, proposal: Proposal, scores: Scores | None) -> None:
        slot = proposal.ask % self._count
        particle = self._swarm.get(slot)
        if scores is not None:
            # 1. the swarm's best and worst
            seen = _Seen(proposal.genome, scores.best_key, proposal.ask)
            self._remember(seen)
            # 2. the particle moves to what was scored
            if particle is None:
                self._swarm[slot] = _Particle(seen, self._first_velocity(seen), seen)
                return
            self._move(particle, seen, self._length(proposal.tells))
        # 3. a failure counts as a move too
        if particle is not None:
            self._rest_if_stale(particle)

    def _remember(self, seen: _Seen) -> None:
        if self._best is None or seen.best_key > self._best.best_key:
            self._best = seen
        if self._worst is None or seen.best_key < self._worst.best_key:
            self._worst = seen

    def _move(self, particle: _Particle, seen: _Seen, length: float) -> None:
        particle.velocity = (seen.genome - particle.at.genome) / length
        particle.at = seen
        if seen.best_key > particle.best.best_key:
            particle.best, particle.stale = seen, -1

    def _rest_if_stale(self, particle: _Particle) -> None:
        """Count a move; after `patience` without improvement return to the best and rest."""
        particle.stale += 1
        if particle.stale >= self._patience:
            particle.at, particle.stale = particle.best, 0
            particle.velocity = np.zeros(self.domain.dimension)

    def _length(self, tells: int) -> float:
        """Return the step length λ after so many tells."""
        return max(self._step * self._decay ** (tells // self._count), self._least_step)

    def _beginning(self, generator: np.random.Generator) -> Genome:
        """Draw a point between two of the domain's sources, the best that was known for one of
        them; without sources around that, or anywhere.
        """
        sources, best = list(self.domain.seeds.values()), self._best_known
        if len(sources) < 2:
            if best is not None:
                return gaussian_mutation(self.domain, best, generator, SPREAD)
            return generator.random(self.domain.dimension)
        a, b = generator.choice(len(sources), size=2, replace=False)
        share = generator.random()
        return share * (sources[a] if best is None else best) + (1 - share) * sources[b]

    def _first_velocity(self, seen: _Seen) -> Genome:
        """Point towards another beginning, as the paper's particles start towards one another."""
        generator = np.random.default_rng(self._random(seen.ask, stream=1))
        return self._beginning(generator) - seen.genome
