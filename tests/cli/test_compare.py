"""`evomerge compare` writes a page, a picture and data."""

from __future__ import annotations

import json

from command_line import evomerge


def test_compare_prints_one_json_object_and_writes_page_picture_and_data(tiny_folder):
    out = tiny_folder / "compare"
    arguments = ["--optimizers", "cma,random", "--seeds", 1, "--trials", 2, "--out", out]
    found = evomerge("compare", tiny_folder / "campaign.yaml", *arguments, "--json")
    assert set(json.loads(found.stdout)["optimizers"]) == {"cma", "random"}
    assert {path.suffix for path in out.glob("compare.*")} == {".html", ".png", ".json"}
    evomerge("best", out / "cma" / "seed-0")
    evomerge("compare", tiny_folder / "campaign.yaml", "--optimizers", "cmaa", code=2)
