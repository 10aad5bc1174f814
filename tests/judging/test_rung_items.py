"""Rungs: fair samples, each within the next."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.judging.rung_items import Rungs, fix_rungs

SIZES = {"short": 40, "long": 200}


WEIGHTS = {"short": 1.0, "long": 1.0}


def responses(rng, abilities, difficulty):
    """Models of given abilities on items of given difficulties: task → (items,) each."""
    return [
        {
            task: (rng.random(len(b)) < 1 / (1 + np.exp(b - ability))).astype(float)
            for task, b in difficulty.items()
        }
        for ability in abilities
    ]


@pytest.fixture
def world():
    rng = np.random.default_rng(3)
    difficulty = {task: rng.normal(0, 1.5, size) for task, size in SIZES.items()}
    return rng, difficulty, responses(rng, [-0.5, 0.0, 0.5, 0.7, 1.0], difficulty)


def test_a_rung_holds_the_one_before_and_the_last_all(world):
    rungs = fix_rungs([16, 60, "all"], SIZES, WEIGHTS, world[2])
    assert [rungs.total(i) for i in range(3)] == [16, 60, 240]
    for task, size in SIZES.items():
        first, second, last = (rungs.places(i)[task] for i in range(3))
        assert set(first) < set(second) < set(last) == set(range(size))
        joined = np.concatenate([rungs.new(i).get(task, []) for i in range(3)])
        assert sorted(joined) == list(range(size))


def test_tasks_of_equal_weight_get_equal_shares_until_one_has_no_more(world):
    rungs = fix_rungs([16, 60, 120, "all"], SIZES, WEIGHTS, world[2])
    counts = [[len(found) for found in rungs.places(i).values()] for i in range(3)]
    assert counts == [[8, 8], [30, 30], [40, 80]]
    heavy = fix_rungs([16, "all"], SIZES, {"short": 1.0, "long": 3.0}, world[2])
    assert [len(found) for found in heavy.places(0).values()] == [4, 12]


def test_a_measure_beside_a_task_has_its_items_and_costs_none(world):
    alone = fix_rungs([16, 60, "all"], SIZES, WEIGHTS, world[2])
    rungs = alone.with_measures({"short.tokens": "short"})
    for rung in range(3):
        places = rungs.places(rung)
        assert (places["short.tokens"] == places["short"]).all()
        assert rungs.total(rung) == alone.total(rung)


def test_rungs_come_back_from_plain_data(world):
    rungs = fix_rungs([16, 60, "all"], SIZES, WEIGHTS, world[2])
    again = Rungs.from_json(rungs.to_json())
    for rung in range(3):
        for task in SIZES:
            assert (again.places(rung)[task] == rungs.places(rung)[task]).all()


def test_a_rung_is_a_fairer_sample_than_items_drawn_at_random():
    """How much easier a rung of 24 is than the whole, over worlds: its spread must shrink."""
    chosen, random = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        difficulty = {task: rng.normal(0, 1.5, size) for task, size in SIZES.items()}
        references = responses(rng, [-0.5, 0.0, 0.5, 0.7, 1.0], difficulty)
        places = fix_rungs([24, "all"], SIZES, WEIGHTS, references).places(0)
        drawn = {t: rng.choice(n, len(places[t]), replace=False) for t, n in SIZES.items()}
        chances = {t: 1 / (1 + np.exp(b - 0.5)) for t, b in difficulty.items()}
        for biases, sample in ((chosen, places), (random, drawn)):
            biases.append(np.mean([p[sample[t]].mean() - p.mean() for t, p in chances.items()]))
    assert np.std(chosen) < 0.8 * np.std(random)
    assert abs(np.mean(chosen)) < 3 * np.std(chosen) / np.sqrt(40)
