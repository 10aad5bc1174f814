"""The pruning test: it errs as often as it says, and pairing makes it sharp."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from evomerge.judging.objectives import find_objective
from evomerge.judging.pruning import Incumbents, beaten_by, is_pruned
from evomerge.judging.scores import Judge

SIZES = {"short": 40, "long": 200}


def judge(kind="mean", tasks=("short", "long"), **options):
    names = list(tasks)
    wanted = find_objective(kind, "fitness.objective", options, names)
    ones = np.ones(len(names))
    return Judge(wanted, names, ones, ones)


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


def test_the_first_on_a_rung_is_promoted_and_one_that_enough_others_beat_is_pruned():
    ones, zeros = ({t: np.full(10, v) for t in SIZES} for v in (1.0, 0.0))
    nobody = {t: np.zeros((0, 10)) for t in SIZES}
    assert not is_pruned(judge(), zeros, nobody, 0.25, 0.8)
    rivals = {t: np.stack([ones[t], *[zeros[t]] * 4]) for t in SIZES}
    assert is_pruned(judge(), zeros, rivals, 0.2, 0.8)  # 1 of 5 is enough
    assert not is_pruned(judge(), zeros, rivals, 0.25, 0.8)  # ⌈5/4⌉ = 2 are needed
    assert not is_pruned(judge(), ones, rivals, 0.2, 0.8)


def test_with_several_goals_only_who_is_worse_in_each_is_beaten():
    measure = judge("pareto", of=["short", "long"]).against({"base": responses_of(0.5)})
    rival = {"short": np.full((1, 20), 0.9), "long": np.full((1, 20), 0.1)}
    assert not beaten_by(measure, responses_of(0.3), rival, 0.8)[0]
    rival["long"] = np.full((1, 20), 0.4)
    assert beaten_by(measure, responses_of(0.3), rival, 0.8)[0]


def by_definition(measure, ours, others, confidence):
    """The paired test, difference by difference."""
    means = np.array([ours[t].mean() for t in measure.tasks])
    slopes, beaten = measure.slopes(means), []
    for place in range(len(next(iter(others.values())))):
        theirs = {t: others[t][place] for t in measure.tasks}
        rival = np.array([theirs[t].mean() for t in measure.tasks])
        wins = []
        for goal, (own, other) in enumerate(zip(slopes, measure.slopes(rival), strict=True)):
            apart = [other[i] * theirs[t] - own[i] * ours[t] for i, t in enumerate(measure.tasks)]
            error = np.sqrt(sum(one.var(ddof=1) / len(one) for one in apart))
            gap = (measure.objectives_of(rival) - measure.objectives_of(means))[goal]
            wins.append(gap > NormalDist().inv_cdf(confidence) * error + 1e-12)
        beaten.append(all(wins))
    return beaten


@pytest.mark.parametrize(
    ("kind", "options"),
    [("mean", {}), ("weakest_link", {}), ("pareto", {"of": ["short", "long"]})],
)
def test_incumbents_that_are_added_one_by_one_are_compared_by_the_same_test(kind, options):
    rng = np.random.default_rng(3)
    measure = judge(kind, **options).against({"base": responses_of(0.5)})
    growing, seen = Incumbents(measure), {t: np.empty((0, n)) for t, n in SIZES.items()}
    mixed = 0
    for _ in range(40):
        ours = {t: rng.random(n) * rng.random() for t, n in SIZES.items()}
        found = list(growing.beating(ours, 0.8)) if len(growing) else []
        assert found == by_definition(measure, ours, seen, 0.8)
        mixed += 0 < sum(found) < len(found)
        one = {t: v[None] for t, v in ours.items()}
        growing.add(one)
        seen = {t: np.concatenate([seen[t], v]) for t, v in one.items()}
    assert mixed > 10
    assert not growing.beating({t: v[-1] for t, v in seen.items()}, 0.5)[-1], "itself beats nobody"


def responses_of(value):
    return {t: np.full(20, value) for t in SIZES}
