"""The grid of MAP-Elites keeps the best of every cell."""

from __future__ import annotations

import numpy as np

from evomerge.search.archives import GridArchive


def test_a_cell_keeps_its_best_and_the_outermost_take_what_lies_beyond():
    grid = GridArchive((2, 3), ((0, 1), (-1, 2)))
    assert grid.offer(np.array([0.1, 0.5]), 1.0) == 1
    assert grid.offer(np.array([0.4, 0.9]), 1.0) is None
    assert grid.offer(np.array([0.4, 0.9]), 2.0) == 1
    assert grid.offer(np.array([1.0, 9.0]), -5.0) == 5
    assert grid.offer(np.array([-3.0, -3.0]), 0.0) == 0
    assert grid.slots.tolist() == [1, 5, 0]
    assert grid.quality.tolist() == [2, -5, 0]
    assert grid.coverage() == 0.5


def test_elites_breed_in_pairs_of_different_cells():
    grid = GridArchive((4, 1), ((0, 1), (0, 1)))
    for i in range(4):
        grid.offer(np.array([i / 4, 0]), float(i))
    pairs = [grid.parents(np.random.default_rng(i)) for i in range(100)]
    assert all(a != b for a, b in pairs)
    assert {a for a, _ in pairs} == {0, 1, 2, 3}
    by_quality = [grid.parents(np.random.default_rng(i), by_quality=True) for i in range(100)]
    assert 0 not in {cell for pair in by_quality for cell in pair}
