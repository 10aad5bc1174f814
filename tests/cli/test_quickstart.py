"""`evomerge quickstart` copies a campaign that runs, and a wheel brings it along."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from command_line import evomerge

ROOT = Path(__file__).parents[2]


def test_quickstart_copies_a_campaign_that_checks(tmp_path):
    result = evomerge("quickstart", "--to", tmp_path / "try")
    campaign = tmp_path / "try" / "quickstart.yaml"
    assert result.stdout.strip() == str(campaign)
    assert "listops_eo" in evomerge("check", campaign, "--no-measure").stdout
    assert {"README.md", "train.py", "zoo", "tasks"} <= set(os.listdir(tmp_path / "try"))


def test_quickstart_overwrites_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "not an empty folder" in evomerge("quickstart", "--to", tmp_path, code=2).stderr
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_quickstart_is_a_quick_command():
    code = "import sys; from evomerge.cli import quickstart; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_wheel_brings_the_quickstart_along(tmp_path):
    """Needs hatchling, from an index or already there."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "from evomerge.cli.quickstart import quickstart_files; print(quickstart_files())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "site",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
    )
    files = Path(run.stdout.strip())
    assert files == tmp_path / "site" / "evomerge" / "cli" / "quickstart_files"
    theirs = {p.relative_to(files) for p in files.rglob("*") if p.is_file()}
    source = ROOT / "search_spaces" / "quickstart"
    ours = {p.relative_to(source) for p in source.rglob("*") if p.is_file()}
    assert {p for p in ours if "__pycache__" not in p.parts} == theirs
