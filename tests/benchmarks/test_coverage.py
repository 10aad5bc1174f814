"""The benchmark of coverage counts the intervals that campaigns are shown with."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from evomerge.judging.objectives import find_objective
from evomerge.judging.paired_tests import compare
from evomerge.judging.scores import Judge

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def coverage():
    return runpy.run_path(str(SCRIPT))


def test_intervals_by_counts_are_those_of_the_items(coverage):
    sizes, weights = coverage["tasks"](20, 3)
    judge = Judge(find_objective("mean", "test"), ["0", "1", "2"], weights, np.ones(3))
    counts = [(3, 1), (40, 55), (0, 0)]
    drawn = [np.array([pair]) for pair in counts]
    value, low, high = coverage["of_differences"](drawn, sizes, weights)
    ours, theirs = ({str(t): np.zeros(n) for t, n in enumerate(sizes)} for _ in range(2))
    for task, (won, lost) in enumerate(counts):
        ours[str(task)][:won] = theirs[str(task)][won : won + lost] = 1
    found = compare(judge, ours, theirs)
    assert (value[0], low[0], high[0]) == pytest.approx((found.difference, found.low, found.high))


def test_it_prints_a_row_for_every_number_of_tasks(coverage, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--simulations", "20", "--items", "20"])
    coverage["main"]()
    told = capsys.readouterr().out
    assert told.count("20 items, tasks: 1") == 3
    assert told.count("20 items, tasks: 5") == 4
    assert told.count("candidates, p") == 4
