from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.judging import pareto


def dominates(a, b):
    (x, broken_x), (y, broken_y) = a, b
    if broken_x != broken_y:
        return broken_x < broken_y
    return bool(np.all(x >= y) and np.any(x > y))


@st.composite
def clouds(draw):
    width = draw(st.integers(1, 3))
    point = st.lists(st.integers(0, 4), min_size=width, max_size=width)
    points = draw(st.lists(point, min_size=1, max_size=14))
    broken = draw(st.lists(st.sampled_from([0, 0, 1, 2]), min_size=len(points), max_size=14))
    return np.array(points, dtype=float), np.array(broken[: len(points)], dtype=float)


@settings(deadline=None, max_examples=150)
@given(clouds())
def test_front_and_ranks_follow_from_the_definition_of_domination(cloud):
    points, broken = cloud
    pairs = list(zip(points, broken, strict=True))
    free = [not any(dominates(other, one) for other in pairs) for one in pairs]
    assert pareto.front(points, broken).tolist() == free
    ranks = pareto.sort(points, broken)
    assert (ranks == 0).tolist() == free
    for i, one in enumerate(pairs):
        above = [ranks[j] for j, other in enumerate(pairs) if dominates(other, one)]
        assert ranks[i] == max(above, default=-1) + 1


def test_a_broken_constraint_counts_for_more_than_any_objective():
    assert pareto.front([[9, 9], [1, 1], [0, 0]], [0.1, 0, 0]).tolist() == [False, True, False]
    assert pareto.front([[9, 9], [1, 1]], [0.1, 0.2]).tolist() == [True, False]
    assert pareto.front([[1, 2], [2, 1]], [-3, 0]).tolist() == [True, True]


def test_crowding_is_largest_where_neighbours_are_far():
    distance = pareto.crowding([[0, 10], [1, 9], [2, 8], [7, 3], [10, 0]])
    assert np.isinf(distance[[0, 4]]).all()
    assert distance[3] > distance[2] > distance[1]


def test_hypervolume_of_known_shapes():
    assert pareto.hypervolume([[2.0], [3.0]], [1.0]) == 2.0
    assert pareto.hypervolume([[1, 3], [3, 1], [2, 2], [0, 9]], [0, 0]) == 6.0
    corners = [[1, 1, 2], [1, 2, 1], [2, 1, 1]]
    assert pareto.hypervolume(corners, [0, 0, 0]) == 4.0
    assert pareto.hypervolume([[-1, 5]], [0, 0]) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pareto.front([1.0, 2.0]), "shape"),
        (lambda: pareto.sort([[1.0], [2.0]], [0.0]), "2 points"),
        (lambda: pareto.front([[np.nan]]), "NaN"),
        (lambda: pareto.hypervolume([[1, 1, 1, 1]], [0, 0, 0, 0]), "three"),
    ],
)
def test_what_has_no_pareto_order_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_front_of_ten_thousand_trials_takes_well_under_a_second():
    import time

    points = np.random.default_rng(0).random((10_000, 2))
    started = time.perf_counter()
    mask = pareto.front(points)
    assert time.perf_counter() - started < 1
    assert 0 < mask.sum() < 100
