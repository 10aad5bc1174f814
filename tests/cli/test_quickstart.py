"""`evomerge quickstart` copies a campaign that runs."""

from __future__ import annotations

import os
import subprocess
import sys

from command_line import evomerge


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
