"""The command line as a subprocess-free call."""

from __future__ import annotations

from typer.testing import CliRunner

from evomerge.cli import app

SCREEN = {"COLUMNS": "200"}


def evomerge(*arguments, code=0):
    """Run a command in this process; checks the exit code and that no trace-back is shown."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env=SCREEN)
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit), result.exception
    return result
