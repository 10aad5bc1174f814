"""Promises that several commands keep."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import evomerge

SLOW = {
    *("torch", "transformers", "lm_eval", "datasets", "peft", "accelerate", "huggingface_hub"),
    *("ray", "pandas", "sklearn", "scipy.stats", "scipy.optimize", "cmaes", "sqlalchemy"),
    *("alembic", "plotly", "matplotlib", "starlette", "uvicorn", "requests", "jinja2"),
}
"""Packages that take a tenth of a second or more to import, or much memory."""


@pytest.mark.parametrize(
    ("command", "further"),
    [
        ("--help", {"numpy", "optuna", "yaml", "evomerge.config"}),
        ("list methods", {"optuna", "scipy"}),
        ("list optimizers", {"scipy.special"}),
        ("list engines", {"optuna", "scipy"}),
        ("list trackers", {"optuna", "scipy"}),
        ("explain ties", {"scipy.special"}),
        ("explain fitness.objective", {"scipy.special"}),
        ("status run", {"optuna", "scipy.special"}),
        ("best run", {"optuna", "scipy.special"}),
    ],
)
def test_quick_commands_import_nothing_that_is_slow(done, command, further):
    code = (
        "import sys; from evomerge.cli import app\n"
        f"try: app({command.split()!r})\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('imported:', sorted({SLOW | further!r} & sys.modules.keys()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=done, check=True, capture_output=True, text=True
    )
    assert run.stdout.splitlines()[-1] == "imported: []"


def test_the_version_is_printed_without_loading_the_commands():
    code = (
        "import sys; from evomerge.__main__ import main; sys.argv[1:] = ['--version']; main()\n"
        "print(sorted({'typer', 'rich', 'pydantic', 'evomerge.cli'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    version = evomerge("--version").stdout
    assert run.stdout == f"{version}[]\n"


@pytest.mark.parametrize("command", ["status", "best", "export"])
def test_a_folder_without_a_run_is_refused(tmp_path, command):
    extra = ["--to", tmp_path / "out"] if command == "export" else []
    assert "no run here" in evomerge(command, tmp_path, *extra, code=2).stderr.replace("\n", " ")
