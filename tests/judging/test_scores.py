"""The judge: values, standard errors, estimates."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.judging.objectives import find_objective
from evomerge.judging.scores import Judge


def judge(weights=(1.0,), signs=(1.0,)):
    names = [f"t{i}" for i in range(len(weights))]
    return Judge(find_objective("mean", "test"), names, np.array(weights), np.array(signs))


def test_mean_objective_weighs_tasks_not_items():
    scores = judge((1.0, 3.0)).scores({"t0": np.ones(1000), "t1": np.zeros(10)})
    assert scores.value == pytest.approx(0.25)
    assert scores.n == 1010


def test_a_metric_where_smaller_is_better_counts_against():
    low, high = {"t0": np.full(5, 0.1)}, {"t0": np.full(5, 0.9)}
    worse_is_more = judge(signs=(-1.0,))
    assert worse_is_more.scores(low).value > worse_is_more.scores(high).value


def test_standard_error_is_that_of_the_weighted_mean():
    rng = np.random.default_rng(0)
    a, b = rng.random(50), rng.random(80)
    scores = judge((1.0, 2.0)).scores({"t0": a, "t1": b})
    expected = np.sqrt(np.var(a, ddof=1) / 50 / 9 + np.var(b, ddof=1) / 80 * 4 / 9)
    assert scores.se == pytest.approx(expected, rel=1e-5)


def test_an_estimate_knows_what_it_was_not_told():
    """Its error is of a score on documents like these, as a measured one's is."""
    rng = np.random.default_rng(2)
    items = {t: (rng.random(n) < 0.5).astype(float) for t, n in (("t0", 40), ("t1", 200))}
    whole = judge((1.0, 1.0), (1.0, 1.0)).scores(items)
    known = {t: (float(v.mean()), 0.0) for t, v in items.items()}
    same = judge((1.0, 1.0), (1.0, 1.0)).estimated(items, known)
    assert (same.value, same.se) == (pytest.approx(whole.value), pytest.approx(whole.se))
    assert same.estimated
    holes = {t: np.where(np.arange(len(v)) < 10, v, np.nan) for t, v in items.items()}
    fewer = judge((1.0, 1.0), (1.0, 1.0)).estimated(holes, dict.fromkeys(items, (0.5, 0.1)))
    assert (fewer.value, fewer.n) == (pytest.approx(0.5), 20)
    assert fewer.se > whole.se
