"""The Gaussian process predicts who is better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from domains import box, sphere

from evomerge.judging.scores import Scores
from evomerge.search.surrogates.gaussian_process import Surrogate


def told(measure, genomes, all_goals=False):
    surrogate = Surrogate(box(genomes.shape[1]), all_goals=all_goals)
    for genome in genomes:
        surrogate.learn(genome, measure(genome))
    return surrogate


POINTS = np.random.default_rng(0).random((60, 3))


def test_an_estimate_counts_less_than_a_measurement():
    """Near x = 1 some scores are far too high; the surer they are, the more is thought of it."""

    def measure(se):
        def scores(genome):
            wrong = genome[0] > 0.8
            value = 1.0 if wrong else -float(genome[0])
            return Scores(value, se if wrong else 0.01, 1, estimated=wrong)

        return scores

    sure, unsure = (told(measure(se), POINTS) for se in (0.01, 1.0))
    point = [np.array([0.9, 0.5, 0.5])]
    assert unsure(point)[0, 0] < sure(point)[0, 0] - 0.5


def test_where_constraints_break_nothing_good_is_expected_and_where_all_fail_the_middle():
    def broken(genome):
        return Scores(float(genome[0]), 0.0, 1, violation=max(0.0, genome[0] - 0.6))

    def failing(genome):
        return None if genome[0] > 0.6 else Scores(float(genome[0]), 0.0, 1)

    ends = [np.array([x, 0.5, 0.5]) for x in (0.55, 0.95)]
    good, bad = told(broken, POINTS)(ends)[:, 0]
    assert good > 0.5
    assert bad < -0.5
    good, unknown = told(failing, POINTS)(ends)[:, 0]
    assert good > unknown
    assert abs(unknown) < 0.7


def test_scores_count_by_their_ranks():
    """One broken merge, or another unit, changes nothing."""
    plain = told(sphere, POINTS)(POINTS[:5])
    bent = told(lambda g: replace(sphere(g), value=-np.exp(-20 * sphere(g).value)), POINTS)
    assert bent(POINTS[:5]) == pytest.approx(plain)


def test_every_goal_of_several_is_predicted():
    def measure(genome):
        pair = (float(genome[0]), -float(genome[0] + genome[1]))
        return Scores(0.0, 0.0, 1, objectives=pair)

    low, high = told(measure, POINTS, all_goals=True)([np.full(3, 0.1), np.full(3, 0.9)])
    assert low.shape == (2,)
    assert low[0] < high[0]
    assert low[1] > high[1]
