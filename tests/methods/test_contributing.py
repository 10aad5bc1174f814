"""The example in CONTRIBUTING.md is a method, and one file is all it takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"
SCRIPT = """
import sys
import evomerge.methods
evomerge.methods.__path__.append({folder!r})
from evomerge.cli import app
app(sys.argv[1:])
"""


def test_a_method_added_in_one_file_is_listed_checked_and_searched(tiny_folder, tmp_path):
    [example] = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    (tmp_path / "largest.py").write_text(example)
    script = SCRIPT.format(folder=str(tmp_path))

    def evomerge(*arguments):
        process = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=tiny_folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    assert "largest" in evomerge("list", "methods")
    use = ["campaign.yaml", "--set", "space.weights.method=largest"]
    assert "largest, 10 genes" in evomerge("check", *use, "--no-measure")
    evomerge("search", *use, "--out", "run", "--trials", "2")
    best = json.loads(evomerge("best", "run", "--json"))
    assert {"largest default", "largest uniform"} <= set(best["baselines"])
    assert {merge["method"] for merge in best["recipe"]["merges"]} == {"largest"}
