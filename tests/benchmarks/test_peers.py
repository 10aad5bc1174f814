"""The table against peers fails where a ratio has fallen by a third, and is drawn as one page."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers.py"


@pytest.fixture
def peers(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_of_peers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RECORD", tmp_path / "peers.json")
    return module


def test_a_ratio_that_falls_by_a_third_fails_and_one_that_falls_less_or_rises_does_not(
    peers, capsys
):
    kept = {"processor": "a CPU", "ratios": {"a": 3.0, "gone": 9.0}}
    peers.RECORD.write_text(json.dumps(kept))
    rows = [peers.row("a", "mergekit", 1.0, 2.1, 4.0), peers.row("new", "lm-eval", 1.0, 0.1, None)]
    assert peers.judge(rows, "a CPU", record=False) == 0
    slow = [peers.row("a", "mergekit", 1.0, 1.9, None)]
    assert peers.judge(slow, "a CPU", record=False) == 1
    assert "a: 1.90x, and 3.00x on record" in capsys.readouterr().out
    assert peers.judge(slow, "another", record=False) == 0
    assert "on record are ratios on a CPU, this is another" in capsys.readouterr().out
    assert peers.judge(rows, "a CPU", record=True) == 0
    assert json.loads(peers.RECORD.read_text()) == {**kept, "ratios": {"a": 2.1, "new": 0.1}}


def test_the_record_in_the_repository_is_of_the_small_forms_own_lines(peers, monkeypatch):
    said = {
        "materialize.py": {"methods": [], "floor": 1.0},
        "merge_command.py": {"methods": []},
        "scoring.py": {"cases": []},
    }
    asked = []
    monkeypatch.setattr(
        peers, "run", lambda script, *options, **_: asked.append(options) or said[script]
    )
    assert list(peers.small()) == []
    known = json.loads((SCRIPT.parent / "peers.json").read_text())["ratios"]
    methods = {word for options in asked for word in options}
    for name in known:
        if name.startswith("candidate, "):
            assert name.removeprefix("candidate, ") in methods
    assert all(ratio > 0 for ratio in known.values())


def test_every_ratio_and_every_bar_is_drawn(peers, tmp_path):
    rows = [
        peers.row("candidate, ties", "mergekit", 0.1, 5.0, 40.0),
        peers.row("100 documents", "lm-eval", 1.0, 6.2, None),
    ]
    data = {"machine": {"processor": "a CPU", "cores": 2}, "rows": rows}
    peers.draw(data, tmp_path / "bench.html")
    page = (tmp_path / "bench.html").read_text()
    assert "candidate, ties (mergekit)" in page
    assert "a CPU, 2 cores" in page
