"""Which parents and baselines a space holds, and where."""

from __future__ import annotations

import numpy as np
import pytest
from spaces import space

from evomerge.config import DareConfig
from evomerge.search.spaces.sparsify_and_lines import SparsifySpace

UNDILUTED = {"weight": [0, 1.5], "density": [0.2, 1]}


def held(found):
    recipes = {**found.parents(), **found.baselines()}
    return {name for name, recipe in recipes.items() if found.point_of(recipe) is not None}


@pytest.mark.parametrize(
    ("method", "genes", "names"),
    [
        ("task_arithmetic", {"weight": [0, 1.5]}, {"base", "math", "lang"}),
        ("task_arithmetic", {"weight": [0, 0.9]}, {"base"}),
        ("task_arithmetic", {"weight": [0.1, 1.5]}, {"math", "lang"} - {"math", "lang"}),
        ("linear", {"weight": [0, 1]}, {"math", "lang"}),
        ("ties", UNDILUTED, {"base", "math", "lang"}),
        ("ties", {"weight": [0, 1.5], "density": [0.2, 0.8]}, {"base"}),
        ("twin", {"weight": [0, 1.5]}, set()),
    ],
)
def test_a_parent_is_held_where_the_method_gives_it_back(method, genes, names):
    assert held(space(method, genes=genes)) & {"base", "math", "lang"} == names


def test_baselines_are_held_where_they_come_back_the_same():
    found = space("task_arithmetic", genes={"weight": [0, 1.5]})
    recipes = found.baselines()
    assert held(found) - {"base", "math", "lang"} == {
        "task_arithmetic default",
        "task_arithmetic uniform",
    }
    point = found.point_of(recipes["task_arithmetic uniform"])
    assert found.decode(point).digest == recipes["task_arithmetic uniform"].digest


def test_experts_that_are_chosen_leave_the_base_where_none_is():
    found = space("ties", genes=UNDILUTED, choose_experts=True)
    assert not found.decode(found.point_of(found.parents()["base"])).merges
    merges = found.decode(found.point_of(found.parents()["lang"])).merges
    assert {tuple(merge.experts) for merge in merges} == {("lang",)}


def test_with_dare_a_parent_is_where_nothing_is_dropped():
    inner = space("task_arithmetic", genes={"weight": [0, 1.5]})
    whole = SparsifySpace(DareConfig(density=[0.2, 1.0]), inner, 1)
    point = whole.point_of(whole.parents()["math"])
    assert {merge.drop is None or merge.drop.density == 1 for merge in whole.decode(point).merges}
    never = SparsifySpace(DareConfig(density=[0.2, 0.8]), inner, 1)
    assert never.point_of(never.parents()["math"]) is None
    assert np.isfinite(point).all()
