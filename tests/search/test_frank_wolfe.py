"""Frank-Wolfe steps: the oracle is the hulls' own minimum, and steps approach the optimum."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.optimize import linprog

from evomerge.recipe import MergeCoefficient
from evomerge.search.frank_wolfe import (
    Vertices,
    gains,
    minimizer,
    sizes,
    step_size,
    stepped,
)

RNG = np.random.default_rng(5)
BLOCKS = [np.array([0, 1, 2]), np.array([4, 5])]
"""Gene 3 moves with none."""


def vertices(count=4):
    return Vertices(RNG.random((count, 6)), BLOCKS)


def inside(hulls):
    """A genome within the hull of each block."""
    genome = RNG.random(6)
    for block in hulls.blocks:
        genome[block] = RNG.dirichlet(np.ones(len(hulls.points))) @ hulls.points[:, block]
    return genome


def test_the_oracle_is_the_linear_minimum_over_the_product_of_hulls():
    for _ in range(20):
        hulls, gradient = vertices(), RNG.normal(size=6)
        genome = inside(hulls)
        found = minimizer(genome, gradient, hulls)
        # 1. no combination of vertices is lower
        for picked in product(range(4), repeat=2):
            other = genome.copy()
            for block, vertex in zip(BLOCKS, picked, strict=True):
                other[block] = hulls.points[vertex, block]
            assert gradient @ found <= gradient @ other + 1e-12
        # 2. nor any point of the hulls, by linear programming
        least = gradient[3] * genome[3]
        for block in BLOCKS:
            costs = hulls.points[:, block] @ gradient[block]
            least += linprog(costs, A_eq=np.ones((1, 4)), b_eq=[1.0]).fun
        assert gradient @ found == pytest.approx(least)
        assert found[3] == genome[3]


def gap(genome, gradient, hulls):
    """The Frank-Wolfe gap ⟨g, x − s⟩: the loss is at most so far above the least that the hulls
    hold, where it is convex (Jaggi 2013, section 2).
    """
    return float(gradient @ (genome - minimizer(genome, gradient, hulls)))


def test_steps_approach_the_optimum_as_fast_as_the_theorem_says():
    """f(xₜ) − f* ≤ 2 L diam² / (t + 2) (Jaggi 2013, theorem 1), and never above the gap."""
    hulls = vertices()
    optimum, x = inside(hulls), inside(hulls)
    optimum[3] = x[3]
    curvature = np.array([1.0, 4.0, 0.5, 1.0, 2.0, 9.0])

    def loss(genome):
        return 0.5 * float(curvature @ (genome - optimum) ** 2)

    diameters = sum(
        ((hulls.points[:, None, b] - hulls.points[None, :, b]) ** 2).sum(-1).max() for b in BLOCKS
    )
    constant = curvature.max() * diameters
    for step in range(60):
        gradient = curvature * (x - optimum)
        assert loss(x) <= gap(x, gradient, hulls) + 1e-12
        if step:
            assert loss(x) <= 2 * constant / (step + 1)
        x = stepped(x, gradient, hulls, step, rate=1.0)
    assert loss(x) < 0.05 * constant


def test_the_expert_that_the_gradient_favours_is_picked_in_each_group():
    alone = Vertices(
        np.array([[0.0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]), [np.array([0, 1]), np.array([2, 3])]
    )
    start = np.full(4, 0.5)
    # raising expert 0 lowers the loss in the first group; in the second nothing does
    gradient = np.array([-2.0, -1.0, 1.0, 3.0])
    found = minimizer(start, gradient, alone)
    np.testing.assert_array_equal(found, [1, 0, 0, 0])
    moved = stepped(start, gradient, alone, step=2, rate=0.5)
    np.testing.assert_allclose(moved, start + step_size(2, 0.5) * (found - start))
    assert step_size(2, 0.5) == 0.25


def test_a_block_outside_the_hull_that_every_vertex_would_worsen_stays():
    alone = Vertices(np.array([[0.0], [0.5]]), [np.array([0])])
    np.testing.assert_array_equal(minimizer(np.array([0.9]), np.array([-1.0]), alone), [0.9])


def test_gains_are_the_inner_products_with_task_vectors_the_greatest_first():
    """θ = θ₀ + Σ w τ in two groups: −⟨∂L/∂θ, τₑ⟩ by the chain rule, for each expert."""
    slopes, vectors = RNG.normal(size=(2, 5)), RNG.normal(size=(3, 2, 5))
    names = ["math", "lang", "code"]
    derivatives = {
        MergeCoefficient(None, group, name, "weight"): float(slopes[row] @ vectors[index, row])
        for index, name in enumerate(names)
        for row, group in enumerate(("a", "b"))
    }
    derivatives |= {MergeCoefficient(None, "a", None, "lambda"): 5.0}
    derivatives |= {MergeCoefficient(None, "a", "math", "density"): 5.0}
    found = gains(derivatives)
    expected = {name: -float((slopes * vectors[i]).sum()) for i, name in enumerate(names)}
    assert found == pytest.approx(expected)
    assert list(found) == sorted(names, key=lambda name: -expected[name])


@pytest.mark.parametrize(
    ("experts", "count", "expected"),
    [(20, 4, [1, 7, 13, 19]), (3, 8, [1, 2]), (2, 1, [1]), (1, 5, []), (20, 0, [])],
)
def test_sizes_of_sets_are_spread_from_one_expert_to_all_but_one(experts, count, expected):
    assert sizes(experts, count) == expected
