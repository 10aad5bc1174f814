"""Promises that several commands keep."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import evomerge


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "list methods",
        "list optimizers",
        "list engines",
        "list trackers",
        "status run",
        "best run",
    ],
)
def test_quick_commands_do_not_import_torch(done, command):
    code = (
        "import sys; from evomerge.cli import app\n"
        f"try: app({command.split()!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=done, check=False).returncode == 0


@pytest.mark.parametrize("command", ["status", "best", "export"])
def test_a_folder_without_a_run_is_refused(tmp_path, command):
    extra = ["--to", tmp_path / "out"] if command == "export" else []
    assert "no run here" in evomerge(command, tmp_path, *extra, code=2).stderr.replace("\n", " ")
