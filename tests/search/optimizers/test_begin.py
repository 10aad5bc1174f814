"""Optimizers that begin at what is known: told before the first ask, and exact under replay."""

from __future__ import annotations

import numpy as np
import pytest
from domains import box, build, mixed, run, score, sphere
from optimizer_runs import OWN, SMALL

from evomerge.common.errors import InputError
from evomerge.search.optimizers import Known

NAMES = [*OWN, "optuna:TPESampler", "optuna:NSGAIISampler"]


def corners(domain):
    """Known points: two far from the optimum, and between them one that is near to it."""
    at = (
        np.full(domain.dimension, 0.1),
        np.full(domain.dimension, 0.68),
        np.ones(domain.dimension),
    )
    return [Known(genome, score_of(domain)(genome)) for genome in at]


def score_of(domain):
    return (lambda genome: score(domain, genome)) if domain.discrete.any() else sphere


def begun(name, domain, seed=0, **options):
    try:
        found = build(name, domain, seed, **{**SMALL.get(name, {}), **options})
    except InputError:
        pytest.skip(f"{name} refuses this domain")
    found.begin(corners(domain))
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [box, mixed])
def test_the_best_that_is_known_is_tried_and_the_rest_goes_on_exactly(name, make):
    domain = make()
    whole = run(begun(name, domain), [], 24, score_of(domain))
    known = corners(domain)
    best = max(known, key=lambda one: one.scores.best_key)
    tried = [proposal for proposal, _ in whole if (proposal.genome == best.genome).all()]
    assert tried
    assert max(s.value for _, s in whole if s) >= best.scores.value
    assert all(ask >= 0 for proposal, _ in whole for ask in proposal.parents)
    for cut in (1, 9, 20):
        resumed = begun(name, domain)
        for proposal, scores in whole[:cut]:
            resumed.tell(proposal, scores)
        assert all(ask >= 0 for ask in resumed.members())
        again = run(resumed, whole[:cut], 24, score_of(domain))
        for (a, _), (b, _) in zip(whole, again, strict=True):
            assert (a.tells, a.parents) == (b.tells, b.parents)
            assert a.genome.tobytes() == b.genome.tobytes()


@pytest.mark.parametrize("name", ["cma", "de", "pso", "optuna:TPESampler"])
def test_where_the_best_is_known_the_search_is_nearer_to_it_than_the_bare_algorithm(name):
    domain = box(20)
    distances = []
    for optimizer in (begun(name, domain), build(name, domain, **SMALL.get(name, {}))):
        record = run(optimizer, [], 30, sphere)
        distances.append(np.median([np.linalg.norm(p.genome - 0.7) for p, _ in record[5:]]))
    assert distances[0] < distances[1]


def test_cma_begins_at_the_best_opening_and_drops_what_came_from_elsewhere():
    domain = box()
    domain.starts = (np.full(6, 0.2), np.full(6, 0.7))
    optimizer = build("cma", domain)
    optimizer.begin(corners(domain))
    first, second = optimizer.ask(0), optimizer.ask(1)
    optimizer.ask(2)  # the best that was known
    early = [optimizer.ask(index) for index in range(3, 9)]
    around = np.mean([p.genome for p in early], axis=0)
    assert np.linalg.norm(around - 0.68) < np.linalg.norm(around - domain.initial)
    optimizer.tell(first, sphere(first.genome))  # no better than what was known
    assert optimizer.ask(9).genome == pytest.approx(again(domain, [first], 9))
    optimizer.tell(second, sphere(second.genome))
    moved = optimizer.ask(9).genome
    optimizer.tell(early[0], sphere(early[0].genome))
    assert (optimizer.ask(9).genome == moved).all()


def again(domain, told, ask):
    optimizer = build("cma", domain)
    optimizer.begin(corners(domain))
    for proposal in told:
        optimizer.tell(proposal, sphere(proposal.genome))
    return optimizer.ask(ask).genome


def test_a_screened_optimizers_surrogate_learns_what_is_known():
    domain = box()
    known = [Known(g, sphere(g)) for g in np.random.default_rng(0).random((12, 6))]
    screened, alone = build("cma", domain, screen=20), build("cma", domain)
    for optimizer in (screened, alone):
        optimizer.begin(known)
    best = [sphere(optimizer.ask(5).genome).value for optimizer in (screened, alone)]
    assert best[0] > best[1]
