"""Quadratic surfaces through measured means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from evomerge.search.surrogates.quadratic import Quadratic, Result, Surfaces, basis


def quadratic(genomes):
    return 0.3 + genomes @ [1.0, -2.0, 0.5] + 3 * genomes[:, 0] * genomes[:, 1]


def test_a_quadratic_is_found_again_from_as_many_points_as_it_has_coefficients():
    rng = np.random.default_rng(0)
    genomes, others, ones = rng.random((10, 3)), rng.random((50, 3)), np.ones(10)
    options = {"interactions": True}
    found = Quadratic.fit(genomes, quadratic(genomes), ones, share=None, **options)
    assert found(others) == pytest.approx(quadratic(others), abs=0.02)
    shares = expit(quadratic(genomes))
    found = Quadratic.fit(genomes, shares, ones, share=10_000, **options)
    assert found(others) == pytest.approx(expit(quadratic(others)), abs=0.02)
    apart = Quadratic.fit(genomes, shares, ones, share=100, interactions=False)
    assert basis(genomes, interactions=False).shape == (10, 6)
    assert np.abs(apart(others) - expit(quadratic(others))).max() > 0.05


def test_a_miss_is_the_error_of_the_surface_through_the_others():
    """At the prior and the noise of the surface through all."""
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(1)
    genomes, weights = rng.random((25, 3)), rng.random(25) + 0.5
    values = quadratic(genomes) + rng.normal(0, 0.3, 25)
    fitted = Quadratic.fit(genomes, values, weights, share=None, interactions=True)
    x, penalty = basis(genomes, interactions=True), fitted.ridge.lambda_ / fitted.ridge.alpha_
    for left_out in (0, 7, 19):
        rest = np.arange(25) != left_out
        ridge = Ridge(alpha=penalty * weights.mean())
        ridge.fit(x[rest], values[rest], sample_weight=weights[rest])
        (expected,) = (values[left_out] - ridge.predict(x[[left_out]])) ** 2
        assert fitted.misses[left_out] == pytest.approx(expected, rel=1e-6)


def test_drawn_surfaces_scatter_about_the_expected_one():
    rng = np.random.default_rng(2)
    genomes = rng.random((25, 3))
    values = quadratic(genomes) + rng.normal(0, 0.3, 25)
    fitted = Quadratic.fit(genomes, values, np.ones(25), share=None, interactions=True)
    draws = np.stack([fitted.drawn(rng)(genomes) for _ in range(400)])
    assert draws.mean(axis=0) == pytest.approx(fitted(genomes), abs=0.06)
    x = basis(genomes, interactions=True) - fitted.ridge.X_offset_
    expected = np.sqrt(np.einsum("ij,jk,ik->i", x, fitted.ridge.sigma_, x))
    assert draws.std(axis=0) == pytest.approx(expected, rel=0.25)


def test_an_estimate_bends_a_surface_less_than_a_measurement():
    points = np.random.default_rng(3).random((40, 2))

    def level(se):
        results = [
            Result(p, (0.9 if p[0] > 0.7 else 0.4,), 100, (0.0,), 0.0, se if p[0] > 0.7 else 0.02)
            for p in points
        ]
        return Surfaces.fit(results, interactions=True).tasks[0](np.array([[0.9, 0.5]]))[0]

    assert level(0.4) < level(0.02) - 0.1
