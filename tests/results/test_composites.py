"""Composed tasks against their parts, on invented scores."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.results.composites import composite_line, composites

TASKS = [
    {"task": "a"},
    {"task": "b"},
    {"task": "a+b", "composed_of": ["a", "b"]},
    {"task": "a+b.a"},
    {"task": "a+b.b"},
]


def scores(**right):
    """Task → 40 items, the first so many right; `__` stands for +, and `_` for the point."""
    named = {name.replace("__", "+").replace("_", "."): count for name, count in right.items()}
    return {name: (np.arange(40) < count) * 1.0 for name, count in named.items()}


def test_the_weakest_part_is_that_with_the_least_score_alone():
    [found] = composites(TASKS, scores(a=36, b=24, a__b=10, a__b_a=12, a__b_b=20))
    assert (found["weakest"], found["by"]) == ("b", "alone")
    assert found["difference"] == pytest.approx(10 / 40 - 24 / 40)
    assert found["low"] < found["difference"] < found["high"] < 0
    assert found["inside"] == {"a": 0.3, "b": 0.5}
    line = composite_line(found, "test")
    assert "a+b: all parts right on .250 of the documents (test)" in line
    assert "the weakest part asked alone, b, .600: composite minus weakest -.350 [" in line


def test_parts_that_are_no_tasks_of_their_own_are_looked_at_inside():
    held = scores(a=36, a__b=10, a__b_a=12, a__b_b=20)
    [found] = composites(TASKS, held)
    assert (found["weakest"], found["by"]) == ("a", "inside")
    assert found["alone"] == {"a": 0.9}
    assert "the weakest part in the same prompt, a, .300" in composite_line(found, "search")


def test_campaigns_that_compose_nothing_have_none():
    assert composites(TASKS[:2], scores(a=3, b=4)) == []
