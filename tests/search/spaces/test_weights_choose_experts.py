"""Irrelevant experts cost nothing where the search may leave experts out.

EvoLLM lost 9 points when 8 irrelevant models joined 2 good ones (arXiv:2403.13187). Here a merge is
scored by how much of the way it goes from the base to a known best merge of the 2 good ones, in
every group of tensors: 0 is the base, 1 the best. Task vectors of irrelevant experts are as long as
those of good ones and point elsewhere, so each of them does as much harm as its weight.

With CMA and six groups of tensors, in points, the mean over seeds 0 to 4:

    trials                                200     400     800
    the 2 good ones                      99.1    99.9   100.0
    8 irrelevant ones, choose_experts    95.6    99.2   100.0
    8 irrelevant ones, without           47.8    68.7    89.9
"""

from __future__ import annotations

import numpy as np
import pytest
from domains import build
from spaces import layout

from evomerge.config import SpaceConfig
from evomerge.judging.scores import Scores
from evomerge.search.spaces.weights import WeightSpace

pytestmark = pytest.mark.slow

BEST = {"math": 0.9, "lang": 0.7}
SEEDS = range(3)


def vectors(names, seed, size=48):
    """Task vectors of length about 1 for every tensor and expert."""
    return {
        (name, tensor.name): np.random.default_rng([seed, i, j]).normal(size=size) / np.sqrt(size)
        for i, name in enumerate(names)
        for j, tensor in enumerate(layout().tensors)
    }


def best_score(irrelevant, trials, seed, *, choose):
    """The best score that CMA finds in so many trials."""
    names = [*BEST, *(f"other{i}" for i in range(irrelevant))]
    weights = {
        "method": "task_arithmetic",
        "choose_experts": choose,
        "genes": {"weight": [0, 1.5]},
    }
    digests = {"base": "0", **{name: name for name in names}}
    space = WeightSpace(SpaceConfig(weights=weights), layout(), digests, seed=0)
    taus = vectors(names, seed)

    def score(recipe):
        merges = {(m.slot, m.group): m.experts for m in recipe.merges}
        missed = whole = 0.0
        for tensor in layout().tensors:
            goal = sum(w * taus[name, tensor.name] for name, w in BEST.items())
            used = merges.get((tensor.layer, tensor.groups[-1]), {})
            found = sum(v["weight"] * taus[name, tensor.name] for name, v in used.items())
            missed += np.sum((goal - found) ** 2)
            whole += np.sum(goal**2)
        return float(1 - missed / whole)

    optimizer, best = build("cma", space, seed), -np.inf
    for index in range(trials):
        proposal = optimizer.ask(index)
        value = score(space.decode(proposal.genome))
        optimizer.tell(proposal, Scores(value, 0.0, 1))
        best = max(best, value)
    return best


@pytest.mark.parametrize(("trials", "points"), [(400, 1.5), (800, 0.2)])
def test_eight_irrelevant_experts_cost_next_to_nothing_at_equal_budgets(trials, points):
    good, many = (
        [100 * best_score(count, trials, seed, choose=count > 0) for seed in SEEDS]
        for count in (0, 8)
    )
    assert np.mean(good) > 99
    assert np.mean(good) - np.mean(many) < points
    assert np.mean(good) - np.min(many) < 2 * points


def test_without_the_choice_they_cost_much():
    good, many = (
        np.mean([100 * best_score(count, 400, seed, choose=False) for seed in SEEDS])
        for count in (0, 8)
    )
    assert good - many > 9
