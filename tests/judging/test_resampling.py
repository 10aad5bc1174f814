"""Resampled intervals and permutation tests, against scipy's and against repeated sampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evomerge.config import ObjectiveConfig
from evomerge.judging import JudgedTask, build_judge
from evomerge.judging.corpus_values import AGGREGATES, CorpusValues
from evomerge.judging.intervals import interval
from evomerge.judging.paired_tests import compare
from evomerge.judging.resampling import CorpusPair


def judge(*tasks, **objective):
    config = ObjectiveConfig.model_validate({"kind": "mean", **objective})
    return build_judge([JudgedTask(task, 1.0, True) for task in tasks], config, [])


def bits(documents: int, seed: int, worse: float = 1.0) -> CorpusValues:
    rng = np.random.default_rng(seed)
    size = rng.integers(20, 60, documents)
    noise = np.random.default_rng(seed + 1000 * (worse != 1)).normal(0, 0.3, documents)
    rate = worse * rng.uniform(1, 2, documents) + noise
    return CorpusValues.of("bits_per_byte", np.stack([-size * rate, size], axis=-1))


def test_the_interval_is_that_of_scipys_bootstrap():
    values = bits(400, 0)

    def score(likelihoods, sizes, axis):
        return -likelihoods.sum(axis) / sizes.sum(axis) / np.log(2)

    expected = stats.bootstrap(
        tuple(values.parts.T), score, paired=True, method="percentile", rng=0, n_resamples=4000
    ).confidence_interval
    found = interval(judge("a"), {"a": values})
    width = expected.high - expected.low
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.1 * width)
    assert interval(judge("a"), {"a": values}) == found


def test_the_p_value_is_that_of_scipys_permutation_test():
    ours, theirs = bits(60, 1), bits(60, 1, worse=1.02)
    rows = np.stack([ours.parts, theirs.parts])

    def gap(a, b):
        a, b = (rows[np.asarray(x, int), np.arange(60)].sum(axis=0) for x in (a, b))
        return AGGREGATES["bits_per_byte"](a) - AGGREGATES["bits_per_byte"](b)

    expected = stats.permutation_test(
        (np.zeros(60), np.ones(60)),
        gap,
        permutation_type="samples",
        vectorized=False,
        rng=0,
        n_resamples=2000,
    )
    found = compare(judge("a"), {"a": ours}, {"a": theirs})
    assert found.test == "permutation"
    assert found.difference == pytest.approx(expected.statistic)
    assert 0.02 < expected.pvalue < 0.9
    assert found.p == pytest.approx(expected.pvalue, abs=0.05)


@pytest.mark.parametrize("seed", range(12))
def test_a_difference_is_significant_where_its_interval_leaves_0_out(seed):
    ours, theirs = bits(50, seed), bits(50, seed, worse=1 + 0.01 * seed)
    for tasks in (("a",), ("a", "b")):
        plain = {"b": np.random.default_rng(seed).uniform(size=50)}
        items = [
            {"a": side, **({"b": plain["b"]} if len(tasks) > 1 else {})} for side in (ours, theirs)
        ]
        found = compare(judge(*tasks), *items)
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        assert found.low <= found.difference <= found.high


def test_a_recipe_is_no_better_than_itself_and_no_p_value_is_below_what_draws_can_tell():
    values = bits(50, 0)
    same = compare(judge("a"), {"a": values}, {"a": values})
    assert (same.difference, same.p) == (0, 1)
    far = compare(judge("a"), {"a": values}, {"a": bits(50, 0, worse=5.0)})
    assert 1e-4 < far.p < 1e-3


def test_intervals_of_few_documents_hold_the_truth_as_often_as_they_say():
    # Bits per byte of documents like these are 1.5/ln 2 in the limit.
    truth, held = 1.5 / np.log(2), 0
    for seed in range(200):
        found = interval(judge("a"), {"a": bits(12, seed)})
        held += found.low <= truth <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_an_objective_that_is_not_linear_draws_both_scores_from_the_same_documents():
    ours, theirs = bits(80, 3), bits(80, 3, worse=1.3)
    plain = np.random.default_rng(0).uniform(1, 3, 80)
    weakest = judge("a", "b", kind="weakest_link")
    found = compare(weakest, {"a": ours, "b": plain}, {"a": theirs, "b": plain})
    assert found.low <= found.difference <= found.high
    assert found.test == "combined"
    drawn = CorpusPair.of(ours, theirs).resampled(500)
    assert np.corrcoef(drawn.T)[0, 1] > 0.2
