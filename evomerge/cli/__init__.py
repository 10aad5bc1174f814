"""The command line. Heavy imports happen inside the commands that need them."""

from evomerge.cli import running, looking, making  # isort: skip
from evomerge.cli.shared import app

__all__ = ["app", "looking", "main", "making", "running"]


def main() -> None:
    """The console script."""
    app()
