"""Directions, normalised losses and niches of NSGA-III."""

from __future__ import annotations

import math

import numpy as np

from evomerge.search.optimizers.parts.reference_points import (
    associate,
    das_dennis,
    directions,
    normalise,
)


def test_das_dennis_directions_lie_evenly_on_the_simplex():
    points = das_dennis(3, 4)
    assert len({tuple(p) for p in points.tolist()}) == len(points) == math.comb(6, 2)
    assert np.allclose(points.sum(axis=1), 1)
    assert points.min() == 0
    assert len(directions(3, 40)) == 36
    assert len(directions(2, 40)) == 40
    assert directions(1, 40).tolist() == [[1.0]]


def test_normalised_losses_have_their_ideal_at_zero_and_intercepts_at_one():
    losses = np.array([[10.0, 3.0], [2.0, 7.0], [4.0, 4.0]])
    scaled = normalise(losses, np.ones(3, dtype=bool))
    assert scaled.min(axis=0).tolist() == [0, 0]
    assert np.allclose(scaled[[0, 1]], np.eye(2))
    flat = normalise(np.array([[1.0, 5.0], [2.0, 5.0]]), np.ones(2, dtype=bool))
    assert np.isfinite(flat).all()


def test_points_go_to_the_nearest_direction():
    nearest, distance = associate(np.array([[3.0, 0.0], [1.0, 1.0]]), das_dennis(2, 2))
    assert das_dennis(2, 2)[nearest].tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert np.allclose(distance, 0, atol=1e-6)
