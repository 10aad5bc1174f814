from __future__ import annotations

import math

import numpy as np
import pytest
from domains import box, build, mixed

from evomerge.judging import pareto
from evomerge.judging.scores import Scores


def zdt1(genome):
    """Maximised; the front is y = sqrt(x) − 1 turned round, volume 0.8767 above (−1.1, −1.1)."""
    spread = 1 + 9 * genome[1:].mean()
    return -genome[0], -spread * (1 - math.sqrt(genome[0] / spread))


def dtlz2(genome):
    """Maximised; the front is the negative octant of the unit sphere."""
    radius = 1 + np.sum((genome[2:] - 0.5) ** 2)
    a, b = genome[:2] * np.pi / 2
    return tuple(-radius * np.array([np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)]))


def search(optimizer, function, asks, violation=lambda genome: 0.0):
    told = []
    for index in range(asks):
        proposal = optimizer.ask(index)
        objectives = tuple(float(o) for o in function(proposal.genome))
        broken = violation(proposal.genome)
        scores = Scores(objectives[0], 0.0, 1, objectives=objectives, violation=broken)
        optimizer.tell(proposal, None if index % 11 == 10 else scores)
        told.append((*objectives, broken))
    return np.array(told)


def volume(name, domain, function, asks, reference, **options):
    told = search(build(name, domain, **options), function, asks)[:, :-1]
    return pareto.hypervolume(told[pareto.front(told)], reference)


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_a_known_front_of_two_objectives_is_approximated(name):
    assert volume(name, box(5), zdt1, 800, (-1.1, -1.1)) > 0.93 * 0.8767
    assert volume("random", box(5), zdt1, 800, (-1.1, -1.1)) < 0.5 * 0.8767


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_a_known_front_of_three_objectives_is_approximated(name):
    whole = 1.2**3 - math.pi / 6
    reference = (-1.2, -1.2, -1.2)
    found = volume(name, box(6), dtlz2, 600, reference)
    assert found > 0.85 * whole
    assert found > volume("random", box(6), dtlz2, 600, reference) + 0.05 * whole


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_the_population_ends_where_constraints_hold(name):
    optimizer = build(name, box(4), population=12)
    told = search(optimizer, zdt1, 300, lambda genome: max(0.0, 0.3 - genome[0]))
    assert (told[:12, -1] > 0).any()
    assert max(optimizer._violations) == 0.0
    assert min(-np.array(optimizer._objectives)[:, 0]) >= 0.3


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_the_population_stays_as_large_as_it_was_asked_to_be(name):
    optimizer = build(name, mixed(), population=9, crossover="split")
    search(optimizer, lambda genome: (genome[0], -genome[1] - genome[0]), 60)
    sizes = {
        len(optimizer._genomes),
        len(optimizer._asks),
        len(optimizer._objectives),
        len(optimizer._order),
    }
    assert sizes == {9}


def test_nsga2_keeps_the_extremes_of_its_front():
    optimizer = build("nsga2", box(2), population=6)
    told = search(optimizer, lambda genome: (genome[0], -genome[0]), 120)
    heard = np.delete(told, np.arange(10, 120, 11), axis=0)
    kept = np.array(optimizer._objectives)
    assert kept[:, 0].max() == heard[:, 0].max()
    assert kept[:, 0].min() == heard[:, 0].min()
