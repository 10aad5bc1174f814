"""What the commands share: the app, its consoles, options, exit codes."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from evomerge import __version__
from evomerge.common.errors import EvomergeError, InputError
from evomerge.common.signals import terminated_like_interrupted

if TYPE_CHECKING:
    from evomerge.config import CampaignConfig

app = typer.Typer(
    name="evomerge",
    help="Find model-merge recipes: search, resume, and export the best.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
stdout = Console()
stderr = Console(stderr=True)

CampaignFile = Annotated[Path, typer.Argument(help="The campaign file (YAML).", show_default=False)]
RunFolder = Annotated[
    Path, typer.Argument(help="A run's folder, such as runs/quickstart.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Override a key of the campaign file; repeatable."
    ),
]
BAD_INPUT, INTERRUPTED, FAILED = 2, 3, 1


@contextmanager
def exit_codes() -> Iterator[None]:
    """Errors that are the user's to mend: one message, no trace-back, the documented exit code."""
    try:
        yield
    except InputError as error:
        stderr.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from None
    except EvomergeError as error:
        stderr.print(f"failed: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the command in order, and says how to go on."""
    try:
        with terminated_like_interrupted():
            yield
    except KeyboardInterrupt:
        again = shlex.join(["evomerge", *sys.argv[1:]])
        stderr.print(
            f"\nstopped; nothing recorded is lost. The same command goes on:\n  {again}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        stdout.print(__version__, highlight=False)
        raise typer.Exit


def load(campaign: Path, overrides: list[str]) -> CampaignConfig:
    """Read a campaign file; see `load_campaign`."""
    from evomerge.config import load_campaign

    return load_campaign(campaign, overrides)


def show(summary: dict[str, Any], as_json: bool, table: Any) -> None:
    """Print a summary as JSON, or as the table that `table` makes of it."""
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        stdout.print(table(summary))
