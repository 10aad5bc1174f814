"""Bootstrap intervals, paired tests, and the correction for many of them."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy import stats

from evomerge.judging.intervals import compare, holm, interval
from evomerge.judging.objectives import find_objective
from evomerge.judging.scores import Judge


def judge(weights=(1.0,), signs=(1.0,)):
    names = [f"t{i}" for i in range(len(weights))]
    return Judge(find_objective("mean", "test"), names, np.array(weights), np.array(signs))


def test_bootstrap_interval_agrees_with_scipy():
    values = np.random.default_rng(1).integers(0, 2, 150).astype(float)
    ours = interval(judge(), {"t0": values})
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)
    assert ours.value == values.mean()


def test_interval_covers_the_truth_nine_times_in_ten():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        span = interval(judge(), {"t0": (rng.random(100) < 0.6).astype(float)})
        hits += span.low <= 0.6 <= span.high
    assert 180 <= hits <= 200


def test_paired_test_agrees_with_scipys_permutation_test():
    rng = np.random.default_rng(4)
    a = (rng.random(60) < 0.7) + 0.01 * rng.random(60)
    b = (rng.random(60) < 0.5) + 0.01 * rng.random(60)
    ours = compare(judge(), {"t0": a}, {"t0": b})
    assert ours.test == "permutation"
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(5),
    )
    assert ours.difference == pytest.approx(a.mean() - b.mean())
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.02)


def exact_tail(won, lost):
    """min(1, 2 P(X ≤ min(won, lost))) of a fair coin, in whole numbers to the end."""
    n, least = won + lost, min(won, lost)
    return float(min(Fraction(1), Fraction(2 * sum(comb(n, k) for k in range(least + 1)), 2**n)))


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 0), (12, 3), (2, 11), (700, 640), (8, 8)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_right_or_wrong_items_of_equal_weight_have_mcnemars_exact_test(won, lost, sign):
    same = np.array([0.0, 1.0] * 10)
    a = np.concatenate([np.ones(won), np.zeros(lost), same])
    ours = compare(judge(signs=(sign,)), {"t0": a}, {"t0": np.concatenate([1 - a[:-20], same])})
    assert ours.test == "mcnemar"
    assert ours.p == pytest.approx(exact_tail(won, lost), abs=1e-15)


def test_mcnemars_test_is_taken_only_where_it_counts_what_the_objective_does():
    rng = np.random.default_rng(10)
    a, b = ({t: (rng.random(80) < p) * 1.0 for t in ("t0", "t1")} for p in (0.7, 0.55))
    alike, weighted = judge((1.0, 1.0), (1.0, 1.0)), judge((1.0, 3.0), (1.0, 1.0))
    assert (compare(alike, a, b).test, compare(weighted, a, b).test) == ("mcnemar", "permutation")
    shorter = [{**items, "t1": items["t1"][:40]} for items in (a, b)]
    assert compare(alike, *shorter).test == "permutation"
    beside = judge((1.0, 0.0), (1.0, 1.0))  # a measure, which is no part of the score
    lengths = [{**items, "t1": 9 * items["t1"]} for items in (a, b)]
    assert compare(beside, *lengths).test == "mcnemar"
    assert compare(alike, *lengths).test == "permutation"


def test_mcnemars_and_the_permutation_test_agree_where_both_hold(monkeypatch):
    rng = np.random.default_rng(11)
    a, b = ({t: (rng.random(100) < p) * 1.0 for t in ("t0", "t1")} for p in (0.6, 0.5))
    measure = judge((1.0, 1.0), (1.0, 1.0))
    exact = compare(measure, a, b)
    monkeypatch.setattr("evomerge.judging.intervals._mcnemar", lambda *_: None)
    drawn = compare(measure, a, b)
    assert (exact.test, drawn.test) == ("mcnemar", "permutation")
    assert exact.p == pytest.approx(drawn.p, abs=0.01)


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


def test_pairing_sees_what_unpaired_intervals_hide():
    rng = np.random.default_rng(6)
    b = (rng.random(200) < 0.5).astype(float)
    a = b.copy()
    a[np.flatnonzero(b == 0)[:12]] = 1.0  # better on twelve items, worse on none
    paired = compare(judge(), {"t0": a}, {"t0": b})
    assert paired.low > 0
    assert paired.p < 0.01
    assert interval(judge(), {"t0": a}).low < interval(judge(), {"t0": b}).high


def test_large_tasks_are_drawn_in_blocks_with_the_same_answer(monkeypatch):
    rng = np.random.default_rng(8)
    a, b = ({"t0": (rng.random(300) < p).astype(float)} for p in (0.6, 0.55))
    kept = compare(judge(), a, b)
    monkeypatch.setattr("evomerge.judging.intervals._KEPT", 100_000)
    blocks = compare(judge(), a, b)
    assert blocks.low == pytest.approx(kept.low, abs=0.01)
    assert blocks.p == pytest.approx(kept.p, abs=0.02)


def test_draws_that_were_kept_are_not_taken_for_another_number(monkeypatch):
    values = (np.random.default_rng(13).random(37) < 0.5).astype(float)
    interval(judge(), {"t0": values})
    monkeypatch.setattr("evomerge.judging.intervals.RESAMPLES", 500)
    both = interval(judge((1.0, 1.0), (1.0, 1.0)), {"t0": values, "t1": values})
    assert both.low < both.value < both.high


def test_tasks_are_resampled_apart():
    """Equal tasks halve the variance of their mean; tied draws would leave it as it was."""
    values = (np.random.default_rng(9).random(120) < 0.5).astype(float)
    one = interval(judge(), {"t0": values})
    two = interval(judge((1.0, 1.0), (1.0, 1.0)), {"t0": values, "t1": values})
    assert (two.high - two.low) / (one.high - one.low) == pytest.approx(0.5**0.5, abs=0.05)


def test_equal_scores_are_no_difference():
    values = np.random.default_rng(7).random(30)
    same = compare(judge(), {"t0": values}, {"t0": values})
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
