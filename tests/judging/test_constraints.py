"""Constraints: what is measured, and that a recipe that breaks one never wins."""

from __future__ import annotations

import pytest
from two_tasks import PARENTS, TASKS, items, judge, judged

from evomerge.common.errors import InputError
from evomerge.config import ConstraintConfig
from evomerge.judging.constraints import Constraints
from evomerge.judging.selection import best, by_preference

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
    for kind, options in (("mean", None), ("pareto", {"of": TASKS})):
        found = judge(kind, options, constraints=[NOT_BELOW], parents=PARENTS)
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
