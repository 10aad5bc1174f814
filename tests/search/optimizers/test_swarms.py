"""Particle swarms and differential evolution: what is theirs alone."""

from __future__ import annotations

import numpy as np
import pytest
from domains import box, build, mixed, run

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


@pytest.mark.parametrize("variant", ["evolver", "textbook"])
def test_a_slot_keeps_the_better_of_member_and_trial(variant):
    optimizer = build("de", variant=variant, population=4)
    for index in range(4):
        tell(optimizer, index, 0.0)
    before = optimizer._members[0][0]
    assert tell(optimizer, 4, -1.0).parents[0] == 0
    assert optimizer._members[0][0] is before
    better = tell(optimizer, 8, 1.0)
    assert optimizer._members[0][0] is better.genome
    tell(optimizer, 12, None)
    assert optimizer._members[0][2] == 8


def test_evolver_stays_between_two_members_and_textbook_does_not():
    def outside(variant):
        optimizer = build("de", box(4), variant=variant, population=5)
        first = np.stack([tell(optimizer, i, 0.0).genome for i in range(5)])
        record = run(optimizer, [(None, None)] * 5, 60)[5:]
        later = np.stack([p.genome for p, _ in record])
        return ((later < first.min(axis=0)) | (later > first.max(axis=0))).any()

    assert not outside("evolver")
    assert outside("textbook")


@pytest.mark.parametrize("variant", ["evolver", "textbook"])
def test_mutants_take_whole_levels_from_members(variant):
    domain = mixed()
    optimizer = build("de", domain, variant=variant, population=4)
    entries = {tell(optimizer, index, 0.0).genome[1] for index in range(4)}
    assert {tell(optimizer, index, 0.0).genome[1] for index in range(4, 40)} <= entries


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


def test_an_estimate_never_takes_a_measured_members_slot():
    optimizer = build("de", population=4)
    guessed = tell(optimizer, 0, 0.9, estimated=True)
    assert optimizer._members[0][2] == guessed.ask
    better = tell(optimizer, 4, 0.95, estimated=True)
    assert optimizer._members[0][2] == better.ask
    measured = tell(optimizer, 8, 0.5)
    assert optimizer._members[0][2] == measured.ask
    tell(optimizer, 12, 0.99, estimated=True)
    assert optimizer._members[0][2] == measured.ask
