"""Curves of runs, and what several say together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evomerge.compare.curves import Curve, curve, quartiles, summarize
from evomerge.config import BudgetConfig
from evomerge.judging.objectives import find_objective
from evomerge.judging.scores import Judge
from evomerge.study.record import Evaluation

JUDGE = Judge(find_objective("mean", "test"), ["t"], np.ones(1), np.ones(1))


def trial(digest, value, split="search", n=10):
    role = "search" if split == "search" else "finalist"
    if value is None:
        return Evaluation(split, digest, {}, role)
    return Evaluation(split, digest, {}, role, value=value, n=n, scores={"t": np.full(n, value)})


def test_a_curve_counts_failures_in_full_and_starts_at_the_first_success():
    found = [trial("a", None), trial("b", 0.3), trial("c", 0.2), trial("d", 0.5, n=4)]
    found += [trial("b", 0.6, "select"), trial("d", 0.4, "select")]
    made = curve(JUDGE, found, BudgetConfig(trials=9), items=10)
    assert made.spent.tolist() == [10, 20, 30, 34]
    assert np.isnan(made.select[0])
    assert made.select[1:].tolist() == [0.6, 0.6, 0.4]
    assert curve(JUDGE, found, BudgetConfig(trials=3), items=10).select[-1] == 0.6
    later = curve(JUDGE, found, BudgetConfig(trials=9), items=10, before=7)
    assert later.spent.tolist() == [17, 27, 37, 41]


def test_a_budget_of_items_ends_with_the_trial_that_spends_it():
    found = [trial("a", 0.3), trial("b", 0.4, n=4), trial("c", 0.5, n=4), trial("d", 0.6)]
    found += [trial(one.digest, one.value, "select") for one in found]
    for items, spent in (
        (11, [10, 14]),
        (14, [10, 14]),
        (15, [10, 14, 18]),
        (99, [10, 14, 18, 28]),
    ):
        made = curve(JUDGE, found, BudgetConfig(items=items), items=10)
        assert made.spent.tolist() == spent
        assert len(made.select) == len(spent)


def test_a_leader_that_fails_on_select_leaves_the_one_before_it():
    found = [trial("a", 0.3), trial("b", 0.5), trial("a", 0.7, "select")]
    found.append(trial("b", None, "select"))
    assert curve(JUDGE, found, BudgetConfig(trials=2), items=10).select.tolist() == [0.7, 0.7]


def steps(*values):
    return Curve(np.arange(1.0, len(values) + 1) * 10, np.array(values))


def test_quartiles_are_taken_between_steps_and_only_where_every_run_has_a_score():
    late = Curve(np.array([15.0, 25.0]), np.array([0.2, 0.8]))
    band = quartiles([steps(0.4, 0.4, 0.4), late])
    assert band["spent"] == [15, 25, 30]
    assert band["median"] == pytest.approx([0.3, 0.6, 0.6])
    assert band["low"] == pytest.approx([0.25, 0.5, 0.5])


def test_the_target_counts_every_known_score_and_ties_share_the_win():
    runs = {
        "a": {0: steps(0.5, 0.96), 1: steps(0.5, 0.7)},
        "b": {0: steps(0.96, 0.96), 1: steps(0.6, 0.7)},
    }
    said = summarize(runs, {"parent": {"base": 0.4}, "baseline": {"average": 1.0}})
    assert (said["best_known"], said["target"]) == (1.0, 0.95)
    a, b = said["optimizers"]["a"], said["optimizers"]["b"]
    assert (a["wins"], b["wins"]) == (1.0, 1.0)
    assert b["to_target"] == {"median": None, "reached": 1, "of": 2}
    assert said["first"] == pytest.approx(0.83)  # a's median
    assert a["to_first"] == b["to_first"] == {"median": None, "reached": 1, "of": 2}
    both = summarize({"b": {0: runs["b"][0]}}, {"parent": {}, "baseline": {}})
    assert both["optimizers"]["b"]["to_target"]["median"] == 10
    quick = {"a": runs["a"], "c": {0: steps(0.9, 0.9), 1: steps(0.6, 0.9)}}
    found = summarize(quick, {"parent": {}, "baseline": {}})["optimizers"]
    assert found["c"]["to_first"] == {"median": 20, "reached": 2, "of": 2}  # .83


def test_the_target_of_negative_scores_lies_below_the_best():
    runs = {"a": {0: steps(-2.0, -1.0, -1.04)}}
    said = summarize(runs, {"parent": {}, "baseline": {}})
    assert said["target"] == pytest.approx(-1.05)
    assert said["optimizers"]["a"]["to_target"]["median"] == 20


def test_an_optimizer_whose_trials_all_failed_is_shown_without_a_score():
    runs = {"a": {0: steps(np.nan, np.nan)}, "b": {0: steps(0.5, 0.6)}}
    said = summarize(runs, {"parent": {}, "baseline": {}})
    assert said["optimizers"]["a"]["final"]["median"] is said["first"] is None
    assert said["optimizers"]["b"]["to_first"] == {"median": None, "reached": 0, "of": 1}
    assert said["optimizers"]["a"]["curve"]["spent"] == []
    assert said["optimizers"]["b"]["wins"] == 1
    json.dumps(said, allow_nan=False)
