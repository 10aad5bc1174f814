"""Rungs and the race on them: fair samples, nested sets, and a test that keeps its promise."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.judging.objectives import find_objective
from evomerge.judging.pruning_test import beaten_by, is_stopped
from evomerge.judging.rungs import Rungs, fix_rungs
from evomerge.judging.scores import Judge

SIZES = {"short": 40, "long": 200}
WEIGHTS = {"short": 1.0, "long": 1.0}


def judge(kind="mean", tasks=("short", "long"), **options):
    names = list(tasks)
    wanted = find_objective(kind, "fitness.objective", options, names)
    ones = np.ones(len(names))
    return Judge(wanted, names, ones, ones)


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


@pytest.mark.parametrize("confidence", [0.7, 0.9])
def test_an_equal_is_called_worse_as_often_as_the_confidence_says(confidence):
    rng = np.random.default_rng(0)
    measure, wrong, rounds = judge(), 0, 1500
    for _ in range(rounds):
        draw = {t: (rng.random((2, 40)) < 0.6).astype(float) for t in SIZES}
        ours = {t: pair[0] for t, pair in draw.items()}
        theirs = {t: pair[1:] for t, pair in draw.items()}
        wrong += int(beaten_by(measure, ours, theirs, confidence)[0])
    assert wrong / rounds == pytest.approx(1 - confidence, abs=0.05)


def test_pairing_finds_what_two_means_would_not():
    rng = np.random.default_rng(1)
    better = {t: (rng.random(60) < 0.6).astype(float) for t in SIZES}
    worse = {t: v.copy() for t, v in better.items()}
    for values in worse.values():
        values[np.flatnonzero(values)[:4]] = 0  # the same but for a few items
    rival = {t: v[None] for t, v in better.items()}
    assert beaten_by(judge(), worse, rival, 0.99)[0]
    shuffled = {t: rng.permutation(v)[None] for t, v in better.items()}
    assert not beaten_by(judge(), worse, shuffled, 0.99)[0]


def test_who_has_no_rival_is_promoted_and_who_is_beaten_by_enough_is_stopped():
    ones, zeros = ({t: np.full(10, v) for t in SIZES} for v in (1.0, 0.0))
    nobody = {t: np.zeros((0, 10)) for t in SIZES}
    assert not is_stopped(judge(), zeros, nobody, 0.25, 0.8)
    rivals = {t: np.stack([ones[t], *[zeros[t]] * 4]) for t in SIZES}
    assert is_stopped(judge(), zeros, rivals, 0.2, 0.8)  # 1 of 5 is enough
    assert not is_stopped(judge(), zeros, rivals, 0.25, 0.8)  # ⌈5/4⌉ = 2 are needed
    assert not is_stopped(judge(), ones, rivals, 0.2, 0.8)


def test_with_several_goals_only_who_is_worse_in_each_is_beaten():
    measure = judge("pareto", of=["short", "long"]).against({"base": responses_of(0.5)})
    rival = {"short": np.full((1, 20), 0.9), "long": np.full((1, 20), 0.1)}
    assert not beaten_by(measure, responses_of(0.3), rival, 0.8)[0]
    rival["long"] = np.full((1, 20), 0.4)
    assert beaten_by(measure, responses_of(0.3), rival, 0.8)[0]


def responses_of(value):
    return {t: np.full(20, value) for t in SIZES}


def test_an_estimate_knows_what_it_was_not_told():
    """Its error is of a score on documents like these, as a measured one's is."""
    rng = np.random.default_rng(2)
    items = {t: (rng.random(n) < 0.5).astype(float) for t, n in SIZES.items()}
    whole = judge().scores(items)
    known = {t: (float(v.mean()), 0.0) for t, v in items.items()}
    same = judge().estimated(items, known)
    assert (same.value, same.se) == (pytest.approx(whole.value), pytest.approx(whole.se))
    assert same.estimated
    holes = {t: np.where(np.arange(len(v)) < 10, v, np.nan) for t, v in items.items()}
    fewer = judge().estimated(holes, dict.fromkeys(SIZES, (0.5, 0.1)))
    assert (fewer.value, fewer.n) == (pytest.approx(0.5), 20)
    assert fewer.se > whole.se
