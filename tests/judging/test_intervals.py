"""Intervals of one recipe's scores: never of no width, as often right as they say."""

from __future__ import annotations

import numpy as np
import pytest
from judges import judge, right
from scipy import stats

from evomerge.judging.intervals import interval, square_and_add, wilson


@pytest.mark.parametrize(("count", "n"), [(0, 20), (1, 20), (13, 20), (50, 50), (190, 200), (1, 1)])
def test_one_task_of_right_and_wrong_items_has_wilsons_interval(count, n):
    ours = interval(judge(), {"t0": right(count, n)})
    theirs = stats.binomtest(count, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.value == count / n


@pytest.mark.parametrize("weights", [(1,), (5, 1, 0.5), (1,) * 12])
@pytest.mark.parametrize("score", [0, 1])
def test_all_right_or_all_wrong_is_not_certain(weights, score):
    found = interval(
        judge(weights), {f"t{i}": np.full(20, float(score)) for i in range(len(weights))}
    )
    assert found.low <= found.value == score <= found.high
    assert 0.02 < found.high - found.low < 0.2


def test_a_weighted_sum_has_the_tasks_intervals_squared_and_added():
    """Worked by hand: weights ¾ and ¼, tasks of 18 of 20 and 40 of 50."""
    found = interval(judge((3, 1)), {"t0": right(18, 20), "t1": right(40, 50)})
    (a, b), (c, d) = [
        stats.binomtest(k, n).proportion_ci(method="wilson") for k, n in ((18, 20), (40, 50))
    ]
    value = 0.75 * 0.9 + 0.25 * 0.8
    assert found.value == pytest.approx(value)
    assert found.low == pytest.approx(value - np.hypot(0.75 * (0.9 - a), 0.25 * (0.8 - c)))
    assert found.high == pytest.approx(value + np.hypot(0.75 * (b - 0.9), 0.25 * (d - 0.8)))


def test_a_task_that_is_the_better_the_smaller_lends_its_other_end():
    found = interval(judge(signs=[-1.0]), {"t0": right(18, 20)})
    mirrored = interval(judge(), {"t0": right(18, 20)})
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low))


def test_a_measure_beside_the_score_does_not_move_the_interval():
    beside = {"t0": right(7, 20), "t1": 100 * right(9, 20)}
    alone = interval(judge(), {"t0": right(7, 20)})
    assert interval(judge((1.0, 0.0)), beside) == alone


@pytest.mark.parametrize("size", [20, 200])
@pytest.mark.parametrize("ability", [0.05, 0.9, 0.98])
def test_intervals_of_three_unequal_tasks_hold_the_truth_as_often_as_they_say(ability, size):
    rng, measure, hits = np.random.default_rng(3), judge((5, 1, 0.5)), 0
    for _ in range(400):
        items = {f"t{i}": (rng.random(n) < ability) * 1.0 for i, n in enumerate((size, 200, 50))}
        found = interval(measure, items)
        hits += found.low <= ability <= found.high
    assert 0.92 <= hits / 400 <= 0.985


@pytest.mark.parametrize(
    ("shape", "scale"),
    [((2, 2), 1), ((3.6, 0.4), 1), ((1.96, 0.04), 1), ((2, 2), 300), ((3.6, 0.4), 300)],
)
def test_items_that_are_not_right_or_wrong_have_intervals_that_hold(shape, scale):
    rng, truth = np.random.default_rng(4), scale * shape[0] / sum(shape)
    found = [interval(judge(), {"t0": scale * rng.beta(*shape, 50)}) for _ in range(300)]
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.9
    if scale == 1:
        assert all(0 <= one.low < one.high <= 1 for one in found)


@pytest.mark.parametrize("level", [0.7, 250.0, -3.0])
def test_items_that_all_agree_are_not_certain(level):
    found = interval(judge(), {"t0": np.full(20, level)})
    assert found.low < found.value < found.high
    assert abs(found.high - found.low) < abs(level) / 5


def test_an_objective_that_is_not_linear_has_an_interval_of_its_own():
    items = {"t0": right(60, 100), "t1": right(60, 100)}
    least = interval(judge((1, 1), kind="weakest_link"), items)
    mean = interval(judge((1, 1)), items)
    assert least.low < mean.low < least.value == mean.value < least.high < mean.high
    apart = {"t0": right(20, 100), "t1": right(90, 100)}
    weakest = interval(judge((1, 1), kind="weakest_link"), apart)
    alone = interval(judge(), {"t0": right(20, 100)})
    assert (weakest.low, weakest.high) == pytest.approx((alone.low, alone.high), abs=1e-9)


# What they are made of


def test_wilsons_ends_are_nearer_the_mean_at_smaller_z_scores():
    ends = wilson(0.9, 20, np.linspace(-3, 3, 7))
    assert (np.diff(ends) > 0).all()
    assert ends[3] == pytest.approx(0.9)


def test_ends_of_tasks_are_added_as_independent_ones():
    deviations = np.array([[-0.3, -0.4], [0.6, 0.8]])
    assert square_and_add(2.0, deviations) == pytest.approx((1.5, 3.0))
