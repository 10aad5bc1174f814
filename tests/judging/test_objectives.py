"""Objectives and fronts: what they say of invented items."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from two_tasks import PARENTS, items, judge, judged

from evomerge.common.errors import InputError
from evomerge.config import ObjectiveConfig, parse_campaign
from evomerge.judging.objectives import objectives
from evomerge.judging.pareto import front, knee_scores
from evomerge.judging.selection import by_preference

PARETO = {"of": ["a", "b"]}


def value(judge, a, b):
    return judge.scores(items(a, b)).value


def test_the_weakest_link_is_the_lowest_task_whatever_its_weight():
    assert value(judge("weakest_link", weights=(9, 1)), 0.9, 0.3) == pytest.approx(0.3)


def test_the_soft_minimum_lies_between_the_minimum_and_the_mean_and_tends_to_both():
    def soft(temperature):
        return value(judge("weakest_link", {"temperature": temperature}), 0.9, 0.3)

    assert soft(1e-4) == pytest.approx(0.3, abs=1e-3)
    assert 0.3 < soft(0.1) < soft(1) < 0.6
    assert soft(1e4) == pytest.approx(0.6, abs=1e-3)
    equal = value(judge("weakest_link", {"temperature": 0.05}), 0.4, 0.4)
    assert equal == pytest.approx(0.4)


def test_normalized_is_one_where_a_recipe_is_as_good_as_the_best_parent_of_each_task():
    normalized = judge("normalized", parents=PARENTS)
    assert value(normalized, 0.8, 0.5) == pytest.approx(1)
    assert value(normalized, 0.4, 0.5) == pytest.approx((0.5 + 1) / 2)


def test_normalized_falls_when_a_loss_grows():
    losses = judge("normalized", signs=(-1, 1), parents=PARENTS)  # the best parent loses 0.1
    assert value(losses, 0.1, 0.5) == pytest.approx(1)
    assert value(losses, 0.2, 0.5) < value(losses, 0.1, 0.5) < value(losses, 0.0, 0.5)


def test_a_task_that_no_parent_can_do_counts_by_its_plain_score():
    none = {"base": items(0.5, 0)}
    assert value(judge("normalized", parents=none), 0.5, 0.3) == pytest.approx((1 + 1.3) / 2)


def test_parents_themselves_are_recorded_by_their_mean_when_the_objective_needs_them_all():
    assert value(judge("normalized"), 0.8, 0.1) == pytest.approx(0.45)


OPTIONS = {"pareto": PARETO}


@pytest.mark.parametrize("kind", objectives())
def test_every_objective_is_vectorised_over_leading_axes(kind):
    found = judge(kind, OPTIONS.get(kind), parents=PARENTS)
    means = np.random.default_rng(0).random((3, 4, 2))
    whole = found.value(means)
    assert whole.shape == (3, 4)
    assert whole[1, 2] == pytest.approx(float(found.value(means[1, 2])))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mean", {"temperature": 1}, "fitness.objective.temperature: unknown option"),
        ("weakest_link", {"temprature": 1}, "did you mean 'temperature'"),
        ("weakest_link", {"temperature": -1}, "fitness.objective.temperature: expected at least 0"),
        ("pareto", {}, "fitness.objective.of: required, but not given"),
        ("pareto", {"of": ["a", "c"]}, "fitness.objective.of: no task or measure 'c'"),
        ("pareto", {"of": ["a"]}, "fitness.objective.of: name two goals"),
        ("pareto", {"of": ["a", "a"]}, "fitness.objective.of: name two goals"),
        ("pareto", {**PARETO, "prefer": {"weights": {"c": 1}}}, "prefer.weights: 'c' is no goal"),
        ("pareto", {**PARETO, "prefer": "knie"}, "fitness.objective.prefer"),
        (
            "pareto",
            {**PARETO, "prefer": {"best": "a", "where": {"b": {"at_least": 1, "at_most": 2}}}},
            "fitness.objective.prefer: .*at_least or at_most",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(kind, options, message):
    with pytest.raises(InputError, match=message):
        judge(kind, options)


def test_pareto_gives_its_goals_larger_is_better():
    goals = {"of": ["a", {"metric": "b", "minimize": True}]}
    scores = judge("pareto", goals, parents=PARENTS).scores(items(0.6, 0.3))
    assert scores.objectives == pytest.approx((0.6, -0.3))
    natural = judge("pareto", PARETO, signs=(1, -1), parents=PARENTS).scores(items(0.6, 0.3))
    assert natural.objectives == pytest.approx((0.6, -0.3))


def test_the_scalar_of_pareto_is_the_preferences():
    def scalar(prefer, a, b, signs=(1, -1)):
        return value(judge("pareto", {**PARETO, "prefer": prefer}, signs, parents=PARENTS), a, b)

    assert scalar({"weights": {"a": 2, "b": 1}}, 0.6, 0.3) == pytest.approx(0.9)
    below = {"best": "a", "where": {"b": {"at_most": 0.4}}}
    assert scalar(below, 0.6, 0.4) == pytest.approx(0.6)
    assert scalar(below, 0.9, 0.5) < scalar(below, 0.1, 0.4)
    assert scalar("knee", 0.8, 0.5, signs=(1, 1)) == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(arrays(float, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(0, 4)))
def test_the_front_is_what_nothing_dominates(points):
    def dominated(i):
        return any((q >= points[i]).all() and (q > points[i]).any() for q in points)

    assert front(points).tolist() == [not dominated(i) for i in range(len(points))]


def test_the_knee_is_where_the_front_bends():
    front = np.array([[0.0, 100.0], [0.8, 90.0], [0.9, 40.0], [1.0, 0.0]])
    assert knee_scores(front).argmax() == 1
    assert knee_scores(front)[[0, 3]] == pytest.approx(0)


def test_the_preferred_of_a_front_come_first_and_nothing_off_the_front():
    found = judge("pareto", PARETO, parents=PARENTS)
    recipes = judged(
        found, left=items(0.1, 1), knee=items(0.8, 0.9), right=items(1, 0), beaten=items(0.7, 0.9)
    )
    assert [one.trial for one in by_preference(recipes, found.objective)] == [
        "knee",
        "left",
        "right",
    ]


@pytest.mark.parametrize(
    ("fitness", "message"),
    [
        ({"constraints": [{}]}, r"fitness.constraints.0: write one constraint an entry"),
        ({"constraints": [{"not_bellow": {}}]}, "did you mean 'not_below'"),
        ({"constraints": [{"not_below": {"task": "a", "bye": 1}}]}, "did you mean 'by'"),
        ({"objective": {"temperature": 1}}, "fitness.objective.kind: required"),
    ],
)
def test_sections_of_the_wrong_form_are_refused(fitness, message):
    data = {
        "name": "x",
        "models": {"base": "b", "experts": {"m": "m"}},
        "space": {"weights": {"method": "ties"}},
        "fitness": {"tasks": [{"task": "a"}], **fitness},
    }
    with pytest.raises(InputError, match=message):
        parse_campaign(data, "campaign")


def test_an_objective_is_written_as_short_as_it_was_given():
    for written in ("mean", {"kind": "weakest_link", "temperature": 0.1}):
        assert ObjectiveConfig.model_validate(written).model_dump() == written


def test_a_measure_moves_neither_value_nor_items_but_is_told():
    scores = judge("weakest_link", weights=(1, 0)).scores(items(0.6, 0.1))
    assert scores.value == pytest.approx(0.6)
    assert scores.n == 10
    assert set(scores.scored_items) == {"a"}
    assert scores.metrics["b"] == pytest.approx(0.1)
