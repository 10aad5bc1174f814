"""Particle swarms and differential evolution: what is theirs alone."""

from __future__ import annotations

import numpy as np
import pytest
from domains import box, build

from evomerge.judging.scores import Scores
from evomerge.search.spaces.genes import Domain


def tell(optimizer, index, value, estimated=False):
    proposal = optimizer.ask(index)
    scores = None if value is None else Scores(value, 0.0, 1, estimated=estimated)
    optimizer.tell(proposal, scores)
    return proposal


def test_particles_begin_between_the_sources():
    plain = box(3)
    sources = {"math": np.zeros(3), "lang": np.array([1.0, 0.5, 0.0])}
    optimizer = build("pso", Domain(plain.genes, plain.initial, seeds=sources), particles=4)
    for index in range(4):
        x, y, z = tell(optimizer, index, 0.0).genome
        assert z == 0
        assert y == pytest.approx(x / 2)


def test_a_particle_without_pulls_but_one_goes_where_it_pulls():
    alone = {"inertia": 0, "cognitive": 0, "social": 0, "repel": 0, "decay": 1}
    towards = build("pso", particles=2, **(alone | {"social": 1.0}))
    good, bad = tell(towards, 0, 1.0), tell(towards, 1, 0.0)
    assert np.allclose(towards.ask(3).genome, good.genome)
    away = build("pso", particles=2, **(alone | {"repel": 1.0}))
    good, bad = tell(away, 0, 1.0), tell(away, 1, 0.0)
    expected = np.clip(good.genome + (good.genome - bad.genome), 0, 1)
    assert np.allclose(away.ask(2).genome, expected)


def test_a_stale_particle_returns_to_its_best_and_rests():
    optimizer = build("pso", particles=2, patience=3)
    best = tell(optimizer, 0, 1.0)
    tell(optimizer, 1, 0.0)
    for index in (2, 4, 6):
        tell(optimizer, index, 0.5)
    particle = optimizer._swarm[0]
    assert particle.at.genome.tobytes() == best.genome.tobytes()
    assert not particle.velocity.any()
    assert particle.stale == 0


def test_steps_shrink_to_their_least():
    optimizer = build("pso", particles=2, step=1.0, decay=0.5, least_step=0.2)
    assert [optimizer._length(t) for t in (0, 1, 2, 4, 6, 600)] == [1, 1, 0.5, 0.25, 0.2, 0.2]


def test_the_swarms_best_and_a_particles_are_measured_ones_however_high_an_estimate():
    optimizer = build("pso", particles=2)
    guessed, measured = tell(optimizer, 0, 0.9, estimated=True), tell(optimizer, 1, 0.5)
    assert optimizer._best.ask == measured.ask
    assert optimizer._swarm[0].best.ask == guessed.ask, "until it has a measured one"
    again = tell(optimizer, 2, 0.4)
    assert optimizer._swarm[0].best.ask == again.ask
    tell(optimizer, 4, 0.95, estimated=True)
    assert optimizer._best.ask == measured.ask
    assert optimizer._swarm[0].best.ask == again.ask
