"""Objectives, fronts and constraints: what they say of invented items."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.common.errors import InputError
from evomerge.config import ConstraintConfig, ObjectiveConfig, parse_campaign
from evomerge.judging.constraints import Constraints
from evomerge.judging.objectives import find_objective, objectives
from evomerge.judging.pareto import front, knee_scores
from evomerge.judging.scores import Judge
from evomerge.judging.selection import Judged, best, by_preference

TASKS = ["a", "b"]
PARETO = {"of": ["a", "b"]}


def judge(
    kind="mean",
    options=None,
    signs=(1, 1),
    weights=(1, 1),
    constraints=(),
    parents=None,
    beside=(),
):
    built = Judge(
        find_objective(kind, "fitness.objective", options, TASKS),
        TASKS,
        np.array(weights, float),
        np.array(signs, float),
        Constraints(
            [ConstraintConfig.model_validate(c) for c in constraints],
            dict(zip(TASKS, signs, strict=True)),
            beside,
        ),
    )
    return built.against(parents or {})


def items(a, b):
    """Ten items a task, the first so many of them right."""
    return {"a": (np.arange(10) < 10 * a) * 1.0, "b": (np.arange(10) < 10 * b) * 1.0}


PARENTS = {"base": items(0.2, 0.2), "math": items(0.8, 0.1), "lang": items(0.1, 0.5)}


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
        ("weakest_link", {"temperature": -1}, "fitness.objective.temperature: .*greater"),
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


def judged(judge, **recipes):
    return [
        Judged(name, name, None if found is None else judge.scores(found))
        for name, found in recipes.items()
    ]


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


FLIPS = {"negative_flips": {"against": "math", "at_most": 0.05}}
NOT_BELOW = {"not_below": {"task": "b", "by": 0.1}}


def test_negative_flips_are_items_the_reference_had_right_and_the_candidate_wrong():
    found = judge(constraints=[FLIPS], parents=PARENTS)
    candidate = items(0.8, 0.1)
    candidate["a"][[0, 1, 2]] = 0  # three lost
    candidate["a"][[8, 9]] = 1  # two won do not make up for them
    (check,) = found.checks(candidate)
    assert check.measured == pytest.approx(3 / 20)
    assert found.scores(candidate).violation == pytest.approx(0.1)
    assert found.scores(PARENTS["math"]).violation == 0


def test_flips_of_a_loss_are_items_on_which_it_grew():
    found = judge(constraints=[FLIPS], signs=(-1, 1), parents=PARENTS)
    assert found.checks(items(1.0, 0.1))[0].measured == pytest.approx(2 / 20)
    assert found.checks(items(0.5, 0.1))[0].measured == 0


def test_a_task_may_not_fall_below_the_best_parent_by_more_than_said():
    found = judge(constraints=[NOT_BELOW], parents=PARENTS)
    assert found.scores(items(0, 0.4)).violation == 0
    assert found.scores(items(1, 0.2)).violation == pytest.approx(0.2)
    named = {"not_below": {"task": "b", "model": "base"}}
    assert judge(constraints=[named], parents=PARENTS).scores(items(0, 0.2)).violation == 0


def test_violations_add_up():
    found = judge(constraints=[FLIPS, NOT_BELOW], parents=PARENTS)
    assert found.scores(items(0, 0)).violation == pytest.approx((9 / 20 - 0.05) + 0.4)


def test_a_recipe_that_breaks_a_constraint_never_wins_over_one_that_keeps_it():
    for kind in ("mean", "pareto"):
        found = judge(kind, OPTIONS.get(kind), constraints=[NOT_BELOW], parents=PARENTS)
        recipes = judged(found, better=items(1, 0.3), kept=items(0.1, 0.5), failed=None)
        assert by_preference(recipes, found.objective)[0].trial == "kept"
        assert best(recipes).trial == "kept"
        worse = judged(found, near=items(0.1, 0.3), far=items(1, 0.1))
        assert [one.trial for one in by_preference(worse, found.objective)] == ["near", "far"]


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (
            {"negative_flips": {"against": "best_parent", "at_most": 0}},
            r"0\.negative_flips\.against",
        ),
        ({"negative_flips": {"against": "mth", "at_most": 0}}, "did you mean 'math'"),
        ({"not_below": {"task": "c"}}, r"0\.not_below\.task: no task 'c'; there are a, b"),
    ],
)
def test_constraints_that_name_what_is_not_there_are_refused(constraint, message):
    constraints = Constraints([ConstraintConfig.model_validate(constraint)], {})
    with pytest.raises(InputError, match=message):
        constraints.check(TASKS, list(PARENTS))


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


def test_a_measure_counts_as_a_flip_only_where_a_constraint_names_it():
    """b is a measure that smaller values suit, and the recipe's is larger than the parent's."""
    parents = {"base": items(0.5, 0.2)}

    def violation(**task):
        flips = {"negative_flips": {"against": "base", "at_most": 0.0, **task}}
        beside = judge(
            signs=(1, -1), weights=(1, 0), constraints=[flips], parents=parents, beside=["b"]
        )
        return beside.scores(items(0.6, 0.9)).violation

    assert violation() == 0
    assert violation(task="b") == pytest.approx(0.7)


def test_a_measure_moves_neither_value_nor_items_but_is_told():
    scores = judge("weakest_link", weights=(1, 0)).scores(items(0.6, 0.1))
    assert scores.value == pytest.approx(0.6)
    assert scores.n == 10
    assert set(scores.counted) == {"a"}
    assert scores.metrics["b"] == pytest.approx(0.1)
