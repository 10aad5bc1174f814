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
    for name in ("best merge", "base", "math", "lang", "task_arithmetic default", "average"):
        assert name in text
    assert "done" in evomerge("status", done / "run").stdout


def test_every_command_gives_the_same_verdict(done):
    best, status = (
        json.loads(evomerge(command, done / "run", "--json").stdout)["verdict"]
        for command in ("best", "status")
    )
    assert best == status
    assert (best["beats"], best["final"]) == (False, True)
    assert {"kind", "parent", "lead", "baseline", "text"} <= best.keys()
    assert best["lead"].keys() == {"difference", "low", "high"}
    again = evomerge("search", done / "campaign.yaml", "--out", done / "run")
    for text in (evomerge(c, done / "run").stdout for c in ("best", "status")):
        assert best["text"] in " ".join(text.replace("│", " ").split())
    assert best["text"] in " ".join(again.stdout.split())
    assert "export it all the same" in again.stderr
