"""MAP-Elites over the measures that it is given."""

from __future__ import annotations

import pytest
from archive_runs import mixed, search

from evomerge.common.errors import InputError
from evomerge.config import OptimizerConfig
from evomerge.search.optimizers import build_optimizer


def test_map_elites_fills_the_cells_of_the_measures_it_is_given():
    options = {"measures": ["smooth", "first"], "grid": [5, 4], "bounds": [[0, 1], [0, 0.5]]}
    domain = mixed()
    domain.statistics = lambda genome: {"first": float(genome[0])}
    optimizer = build_optimizer(OptimizerConfig(kind="map_elites", **options), domain, 0)
    optimizer.check_metrics(["near", "smooth"])
    record = search(optimizer, 150)
    expected = {}
    for proposal, scores in record:
        place = (min(int(scores.metrics["smooth"] * 5), 4), min(int(proposal.genome[0] * 8), 3))
        expected[place] = max(expected.get(place, -1), scores.value)
    state = optimizer.state()
    assert state["coverage"] == len(expected) / 20
    assert state["measures"] == ["smooth", "first"]
    asks = dict(zip(map(tuple, state["cells"]), state["members"], strict=True))
    values = {proposal.ask: scores.value for proposal, scores in record}
    assert {cell: values[ask] for cell, ask in asks.items()} == expected
    assert sorted(optimizer._archive.quality) == sorted(expected.values())


def test_map_elites_refuses_measures_nobody_takes_and_bounds_that_cross():
    def build_with(**options):
        return build_optimizer(OptimizerConfig(kind="map_elites", **options), mixed(), 0)

    with pytest.raises(InputError, match=r"optimizer.measures: 'smoth' .*did you mean 'smooth'"):
        build_with(measures=["near", "smoth"]).check_metrics(["near", "smooth"])
    with pytest.raises(InputError, match=r"optimizer.bounds: the second"):
        build_with(bounds=[[0, 1], [1, 1]])
    with pytest.raises(InputError, match=r"optimizer.grid"):
        build_with(grid=[10])
