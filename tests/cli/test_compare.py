"""`evomerge compare` writes a page, a picture and data."""

from __future__ import annotations

import json
import sys

from command_line import evomerge


def test_compare_prints_one_json_object_and_writes_page_picture_and_data(tiny_folder):
    out = tiny_folder / "compare"
    arguments = ["--optimizers", "cma,random", "--seeds", 1, "--trials", 2, "--out", out]
    found = evomerge("compare", tiny_folder / "campaign.yaml", *arguments, "--json")
    assert set(json.loads(found.stdout)["optimizers"]) == {"cma", "random"}
    assert "loading libraries\nopening models and tasks\n" in found.stderr
    assert {path.suffix for path in out.glob("compare.*")} == {".html", ".png", ".json"}
    evomerge("best", out / "cma" / "seed-0")
    evomerge("compare", tiny_folder / "campaign.yaml", "--optimizers", "cmaa", code=2)


def test_without_matplotlib_there_is_no_picture_and_a_note(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tiny_folder / "compare"
    arguments = ["--optimizers", "random", "--seeds", 1, "--trials", 1, "--out", out]
    found = evomerge("compare", tiny_folder / "campaign.yaml", *arguments)
    assert "evomerge[compare]" in found.stderr
    assert {path.suffix for path in out.glob("compare.*")} == {".html", ".json"}
