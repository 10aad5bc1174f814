"""`evomerge best`: one table for people, one JSON object for programs."""

from __future__ import annotations

import json

from command_line import evomerge


def test_best_prints_one_json_object_in_the_documented_form(done):
    best = json.loads(evomerge("best", done / "run", "--json").stdout)
    assert {"trial", "digest", "recipe", "scores", "parents", "baselines"} <= set(best)
    assert set(best["scores"]) == {"search", "select", "test"}
    for scores in (best["scores"], *best["parents"].values(), *best["baselines"].values()):
        for split in scores.values():
            assert {"mean", "low", "high", "tasks"} <= set(split)
            assert set(split["tasks"]["pick"]) == {"mean", "n"}


def test_tables_name_every_parent_and_baseline(done):
    text = evomerge("best", done / "run").stdout
    for name in ("winner", "base", "math", "lang", "task_arithmetic default", "average"):
        assert name in text
    assert "done" in evomerge("status", done / "run").stdout
