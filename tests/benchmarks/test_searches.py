"""The benchmark of searches counts items until plain cma's end, and draws what is on record."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "searches.py"


@pytest.fixture(scope="module")
def searches():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def record(searches, tmp_path):
    """Two seeds of plain cma and of another arm, one of which never arrives."""
    runs = {
        "plain/0": ([100, 200, 300], [0.4, 0.5, 0.6], 0.55),
        "plain/1": ([100, 200, 300], [0.4, 0.7, 0.7], 0.65),
        "defaults/0": ([60, 160], [0.6, 0.8], 0.75),
        "defaults/1": ([60, 160], [0.5, 0.6], 0.65),
    }
    for name, (spent, best, test) in runs.items():
        one = searches["Found"](spent, best, 0.3, spent[-1], test, 0.35)
        folder = tmp_path / "base_best" / name
        folder.mkdir(parents=True)
        (folder / "found.json").write_text(json.dumps(asdict(one)))
    return tmp_path


def test_items_are_those_until_plain_cmas_end_of_the_same_seed(searches, record):
    found = searches["runs_of"](record, "base_best", ["plain", "defaults"])
    summary = searches["summed_up"](found)
    assert summary["plain"]["ratios"] == [1, 1]
    assert summary["defaults"]["plain_items"] == [300, 200]
    assert summary["defaults"]["ratios"] == [300 / 60, 0]
    assert summary["defaults"]["gain"][0] == pytest.approx(0.1)


def test_what_is_on_record_is_shown_and_drawn(searches, record, monkeypatch, capsys):
    given = ["--cases", "base_best", "--show", "--out", str(record)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *given])
    searches["main"]()
    told = capsys.readouterr().out
    assert "1/2.5" in told
    assert "never" in told
    assert (record / "searches.png").stat().st_size > 1000
    summary = json.loads((record / "searches.json").read_text())["base_best"]
    assert summary["defaults"]["seeds"] == [0, 1]


@pytest.fixture(scope="module")
def zoos(tmp_path_factory):
    return tmp_path_factory.mktemp("zoos")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["cma", "optuna:TPESampler", "m2n2"])
def test_no_search_ends_below_a_base_that_is_the_best_parent(searches, zoos, tmp_path, optimizer):
    campaign = searches["campaign_of"]("base_best", zoos)
    changes = [f"optimizer.kind={optimizer}", "workers={isolated: false}"]
    found = searches["run"](campaign, tmp_path, changes, trials=30, share=None)
    assert found.best[-1] >= found.begun
    assert found.chosen in (found.test, found.parent)
