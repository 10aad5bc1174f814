"""The command line, one file a command. Heavy imports happen inside the commands that need them."""

# Each module registers its command; `evomerge --help` lists them in this order.
from evomerge.cli import search  # isort: skip
from evomerge.cli import compare, check, init, quickstart  # isort: skip
from evomerge.cli import status, best, report, dashboard, retry  # isort: skip
from evomerge.cli import list, explain, doctor  # isort: skip
from evomerge.cli import export, merge, calibrate  # isort: skip
from evomerge.cli.shared import app

__all__ = [
    "app",
    "best",
    "calibrate",
    "check",
    "compare",
    "dashboard",
    "doctor",
    "explain",
    "export",
    "init",
    "list",
    "main",
    "merge",
    "quickstart",
    "report",
    "retry",
    "search",
    "status",
]


def main() -> None:
    """Run the command that `sys.argv` names."""
    app()
