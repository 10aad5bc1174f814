"""The parts that commands share: the app, its consoles, options, exit codes, kinds of lines."""

from __future__ import annotations

import gc
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from evomerge.common.errors import EvomergeError, InputError, StoppedError
from evomerge.common.signals import terminated_like_interrupted
from evomerge.common.version import __version__

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
RunOut = Annotated[
    Path | None, typer.Option("--out", help="The run's folder.", show_default="runs/<name>")
]
ShardSize = Annotated[
    str, typer.Option(metavar="SIZE", help="The largest file of weights: 5GB, 900MB.")
]
BAD_INPUT, INTERRUPTED, FAILED = 2, 3, 1


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn an error that the user can mend into one message and its documented exit code."""
    try:
        yield
    except InputError as error:
        hint(f"error: {error}", style="red")
        raise typer.Exit(BAD_INPUT) from None
    except StoppedError as error:
        hint(f"stopped: {error}", style="red")
        raise typer.Exit(INTERRUPTED) from None
    except EvomergeError as error:
        hint(f"failed: {error}", style="red")
        raise typer.Exit(FAILED) from None


@contextmanager
def collector_off() -> Iterator[None]:
    """Collect no garbage while a command reads a study and ends; of 20,000 trials it takes .1 s."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def resumable() -> Iterator[None]:
    """On Ctrl-C, SIGTERM or SIGHUP end the command in order, and say how to go on."""
    try:
        with terminated_like_interrupted():
            yield
    except KeyboardInterrupt:
        again = shlex.join(["evomerge", *sys.argv[1:]])
        hint(f"\nstopped; nothing recorded is lost. The same command goes on:\n  {again}")
        raise typer.Exit(INTERRUPTED) from None


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        stdout.print(__version__, highlight=False)
        raise typer.Exit


def say(result: object) -> None:
    """Print a result of a command on standard output: one unwrapped line, for scripts to read."""
    stdout.print(str(result), markup=False, highlight=False, soft_wrap=True)


def hint(text: object, style: str = "") -> None:
    """Print an unwrapped line for people on standard error."""
    stderr.print(str(text), style=style, markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Tell the user what they should know, though the command goes on."""
    hint(f"note: {text}", style="yellow")


def warn(text: str) -> None:
    """Warn the user of what may do harm, though the command goes on."""
    hint(f"warning: {text}", style="yellow")


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say before some seconds of waiting what it is for: by a spinner, or by a plain line."""
    if stderr.is_terminal:
        with stderr.status(text):
            yield
    else:
        hint(text)
        yield


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


def shard_bytes_of(size: str) -> int:
    """Read `--shard-size` as a number of bytes.

    Raises:
        InputError: it is no size, or nothing would fit.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        found = TypeAdapter(ByteSize).validate_python(size)
    except ValidationError:
        found = ByteSize(0)
    if found < 1:
        raise InputError(f"--shard-size {size}: write a size such as 5GB or 900MB")
    return int(found)
