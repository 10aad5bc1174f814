"""Crossover and mutation of genomes."""

from __future__ import annotations

import numpy as np

from evomerge.search.optimizers.parts.variation import polynomial_mutation, reflect, sbx


def test_variation_keeps_to_the_cube_and_to_levels():
    rng = np.random.default_rng(0)
    discrete = np.array([False, True, False, True])
    a, b = np.array([0.0, 0.1, 1.0, 0.9]), np.array([0.9, 0.7, 0.2, 0.3])
    children = np.stack([sbx(a, b, discrete, rng, 2.0) for _ in range(300)])
    assert children.min() >= 0
    assert children.max() <= 1
    assert set(children[:, 1]) == {0.1, 0.7}
    assert len(set(children[:, 0])) > 50
    mutants = np.stack([polynomial_mutation(a, discrete, rng, 5.0, 0.0) for _ in range(300)])
    assert ((mutants != a).sum(axis=1) <= 1).all()
    assert ((mutants != a).any(axis=1)).mean() > 0.7  # at a wall, half the steps go nowhere
    assert mutants.min() >= 0
    assert mutants.max() <= 1
    assert np.allclose(reflect(np.array([-0.2, 1.3, 0.4])), [0.2, 0.7, 0.4])
