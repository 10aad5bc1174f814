"""Paired tests: intervals and p-values of leads that agree, and the correction for many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import judge, pair, tasks
from scipy import stats

from evomerge.judging.intervals import DRAWS, interval
from evomerge.judging.paired_tests import compare, holm


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 0), (12, 3), (2, 11), (700, 640), (8, 8)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_task_of_right_and_wrong_items_has_mcnemars_test(won, lost, sign):
    """Its tail, by Jeffreys' interval, is between those of the exact test with and without it."""
    found = compare(judge(signs=[sign]), *tasks(pair(won, lost, won + lost + 20)))
    assert found.test == "mcnemar"
    coin, most = stats.binom(won + lost, 0.5), max(won, lost)
    assert 2 * coin.sf(most) <= found.p <= min(1.0, 2 * coin.sf(most - 1))
    tail = 2 * stats.beta(most + 0.5, min(won, lost) + 0.5).cdf(0.5)
    assert found.p == pytest.approx(1.0 if won == lost else tail, rel=1e-6)


@pytest.mark.parametrize("n", [1, 7, 20, 61])
def test_every_outcome_of_one_task_has_a_p_value_that_agrees_with_its_interval(n):
    for won in range(0, n + 1, 1 + n // 20):
        for lost in range(0, n + 1 - won, 1 + n // 20):
            found = compare(judge(), *tasks(pair(won, lost, n)))
            assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
            assert found.low <= found.difference <= found.high
            assert found.high - found.low > 1 / n**1.5


scored = st.sampled_from(["right or wrong", "between", "counts"])


@settings(max_examples=80, deadline=None)
@given(
    kinds=st.lists(scored, min_size=1, max_size=4),
    objective=st.sampled_from(["mean", "weakest_link"]),
    sizes=st.lists(st.integers(1, 60), min_size=4, max_size=4),
    better=st.lists(st.floats(-0.5, 0.5), min_size=4, max_size=4),
    seed=st.integers(0, 1000),
)
def test_p_values_and_intervals_never_contradict_each_other(kinds, objective, sizes, better, seed):
    rng, pairs = np.random.default_rng(seed), []
    for kind, n, ahead in zip(kinds, sizes, better, strict=False):
        ours, theirs = rng.random(n) < 0.5 + ahead, rng.random(n) < 0.5
        factor = {"right or wrong": 1.0, "between": rng.random(n), "counts": 300 * rng.random(n)}
        pairs.append((ours * factor[kind], theirs * factor[kind]))
    found = compare(judge(rng.integers(1, 6, len(pairs)), kind=objective), *tasks(*pairs))
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
    assert found.low <= found.difference <= found.high
    assert found.low < found.high
    assert 0 < found.p <= 1


def test_a_goal_that_is_no_task_of_the_score_counts_in_the_p_value_too():
    """The case in which a difference of +.150 [.050, .250] stood beside p = 1.000.

    The objective weighs a measure beside the score, on which one recipe is better; McNemar's test
    looked at the score's one task, on which they are level.
    """
    options = {"of": ["t0", "t1"], "prefer": {"weights": {"t0": 0.5, "t1": 0.5}}}
    measure = judge((1.0, 0.0), kind="pareto", **options).against(
        {"base": tasks(pair(0, 0, 40))[0]}
    )
    items = tasks(pair(5, 5, 40), pair(14, 2, 40))
    found = compare(measure.against({"base": items[1]}), *items)
    assert found.difference == pytest.approx(0.15)
    assert found.low > 0
    assert found.p < 0.05


def test_few_items_that_differ_are_no_certain_difference():
    """A bootstrap of the first kept to [.000, .300], and of the second to [.000, .000]."""
    three = compare(judge(), *tasks(pair(3, 0, 20)))
    assert three.low < 0 < three.high
    assert 0.05 < three.p < 0.1
    none = compare(judge(), *tasks(pair(0, 0, 20, both=20)))
    assert none.low == pytest.approx(-none.high)
    assert (none.difference, none.p) == (0, 1)
    assert 0.05 < none.high < 0.2


def test_tasks_that_trade_off_are_compared_by_their_weighted_mean():
    """Items won on a large task of little weight do not outweigh those lost on a small one."""
    items = tasks(pair(1, 9, 20), pair(60, 20, 200))
    counted = compare(judge((1, 10)), *items)  # an item moves either as much
    weighted = compare(judge((5, 1)), *items)
    assert counted.difference > 0 > weighted.difference
    assert counted.p < 0.05
    assert weighted.high < 0
    assert weighted.p < 0.05


def test_pairing_sees_what_unpaired_intervals_hide():
    rng = np.random.default_rng(6)
    b = (rng.random(200) < 0.5).astype(float)
    a = b.copy()
    a[np.flatnonzero(b == 0)[:12]] = 1.0  # better on twelve items, worse on none
    paired = compare(judge(), {"t0": a}, {"t0": b})
    assert paired.low > 0
    assert paired.p < 0.01
    assert interval(judge(), {"t0": a}).low < interval(judge(), {"t0": b}).high


def test_items_that_are_not_right_or_wrong_are_compared_as_by_students_test():
    rng = np.random.default_rng(5)
    b = rng.random(200)
    a = b + rng.normal(0.03, 0.2, 200)
    found, theirs = compare(judge(), *tasks((a, b))), stats.ttest_rel(a, b)
    assert found.test == "t"
    assert found.p == pytest.approx(theirs.pvalue, abs=0.03)
    assert found.low == pytest.approx(theirs.confidence_interval().low, abs=0.005)


def test_equals_are_called_different_as_seldom_as_the_p_value_says():
    """Three tasks of unequal size and weight, with few items that differ and with many."""
    rng, measure = np.random.default_rng(7), judge((5, 1, 0.5))
    for differing in (0.05, 0.4):
        p_values = []
        for _ in range(300):
            counts = [
                rng.multinomial(n, [differing / 2] * 2 + [1 - differing]) for n in (20, 99, 50)
            ]
            pairs = [pair(won, lost, won + lost + same) for won, lost, same in counts]
            p_values.append(compare(measure, *tasks(*pairs)).p)
        assert np.mean(np.array(p_values) < 0.05) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


def test_the_weakest_of_two_tasks_is_compared_by_draws():
    items = tasks(pair(30, 5, 100), pair(28, 6, 100))
    found = compare(judge((1, 1), kind="weakest_link"), *items)
    assert found.test == "combined"
    assert 0 < found.low < found.difference < found.high
    assert 1 / DRAWS <= found.p < 0.05
    assert found == compare(judge((1, 1), kind="weakest_link"), *items)
    other_way = compare(judge((1, 1), kind="weakest_link"), *reversed(items))
    assert other_way.difference == -found.difference
    assert (other_way.low, other_way.high) == pytest.approx((-found.high, -found.low), abs=0.02)


@pytest.mark.parametrize("values", [np.array([1.0, 0.0] * 15), np.linspace(0, 1, 30)])
def test_equal_scores_are_no_difference_and_not_certain_to_be_none(values):
    same = compare(judge(), {"t0": values}, {"t0": values})
    assert (same.difference, same.p) == (0, 1)
    assert same.low == pytest.approx(-same.high)
    assert 0.01 < same.high < 0.2


def test_holms_correction_is_that_of_the_paper():
    # R's p.adjust(c(.01, .04, .03, .005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_of_many_equals_holm_calls_one_different_as_seldom_as_it_says():
    rng = np.random.default_rng(12)
    families = rng.random((4000, 8))
    wrong = np.mean([min(holm(family)) < 0.05 for family in families])
    assert wrong == pytest.approx(0.05, abs=0.01)
    assert np.mean(families.min(axis=1) < 0.05) > 0.3  # uncorrected
