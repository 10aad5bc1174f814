"""The front of a function that costs next to nothing."""

from __future__ import annotations

import numpy as np

from evomerge.search.optimizers.parts.fronts import front_of
from evomerge.search.optimizers.parts.reference_points import survivors


def test_niches_that_are_empty_are_filled_first_and_whole_fronts_before():
    rng = np.random.default_rng(0)
    losses = np.array([[0.0, 1.0], [1.0, 0.0], [0.01, 0.99], [0.02, 0.98], [0.5, 0.5], [2.0, 2.0]])
    ranks = np.array([0, 0, 0, 0, 0, 1])
    assert sorted(survivors(losses, ranks, 3, rng).tolist()) == [0, 1, 4]
    assert sorted(survivors(losses, ranks, 6, rng).tolist()) == list(range(6))


def test_a_front_that_costs_nothing_is_found_whole_and_evenly():
    """ZDT1: y = 1 − √x where all other genes are 0."""

    def zdt1(genomes):
        spread = 1 + 9 * genomes[:, 1:].mean(axis=1)
        second = spread * (1 - np.sqrt(genomes[:, 0] / spread))
        return -np.stack([genomes[:, 0], second], axis=1), np.zeros(len(genomes))

    discrete = np.zeros(6, dtype=bool)
    members = front_of(zdt1, np.empty((0, 6)), discrete, 20, np.random.default_rng(0))
    goals, _ = zdt1(members)
    assert len(members) == 20
    assert (-goals[:, 1] - (1 - np.sqrt(-goals[:, 0])) < 0.03).all()
    assert np.diff(np.sort(goals[:, 0])).max() < 0.15
