"""A loss is known again from noisy gradients along a descent, and screening by it finds more."""

from __future__ import annotations

import numpy as np
import pytest
from domains import build, run
from logistic import Logistic

from evomerge.search.descent import begin, stepped, with_slopes
from evomerge.search.spaces.genes import Domain, Gene
from evomerge.search.surrogates.loss_slopes import LossSlopes


def told(record):
    """The loss as a descent's record tells it."""
    return LossSlopes.fit(round(record.slopes[0][0]), record.slopes[1:])


def test_a_quadratic_of_each_gene_is_found_again_from_its_gradients():
    curvature, optimum = np.array([40.0, 5.0, 0.0]), np.array([0.3, 0.8, 0.5])
    record = begin("uniform", np.array([0.9, 0.1, 0.5]))
    for _ in range(400):
        gradient = curvature * (np.array(record.genome) - optimum) + np.array([0, 0, 2.0])
        record = stepped(with_slopes(record, gradient), gradient, 0.02)
    loss = told(record)
    # the ridge takes something off each curvature, and nothing where genes moved far
    assert loss.curvature == pytest.approx(curvature, rel=0.2)
    assert loss.slope[2] == pytest.approx(2.0)
    # the loss is lower nearer the optimum, and differences are those of the quadratic
    at = np.array([[0.35, 0.75, 0.2], [0.3, 0.8, 0.2], [0.3, 0.8, 0.1]])
    found = loss(at)
    assert found[0] > found[1] > found[2]
    assert found[1] - found[2] == pytest.approx(0.2)


def test_genes_that_hardly_moved_have_no_curvature_to_speak_of():
    record = begin("uniform", np.array([0.5]))
    for sign in (1, -1, 1, -1):
        record = with_slopes(record, np.array([float(sign)]))
    assert told(record).curvature == pytest.approx(0)


@pytest.mark.slow
def test_screened_by_gradients_too_a_search_finds_more_than_by_scores_alone():
    """Of 12 made-up merges of 28 genes, 40 trials each."""
    gains = []
    for seed in range(12):
        merge, best = Logistic(seed), []
        record = merge.descent()
        for loss in (told(record), None):
            genes = [Gene(f"g{i}") for i in range(merge.genes)]
            domain = Domain(genes, starts=(np.array(record.best),))
            domain.loss = loss
            optimizer = build("cma", domain, seed, screen=4)
            optimizer.begin([])
            found = run(optimizer, [], 41, merge.scores)
            best.append(max(scores.value for _, scores in found if scores))
        gains.append(best[0] - best[1])
    assert np.mean(gains) > 0
