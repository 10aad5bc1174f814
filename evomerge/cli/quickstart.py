"""`evomerge quickstart`: small models, tasks and a campaign to play with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.shared import app, exit_codes, hint, say
from evomerge.common.errors import InputError

CAMPAIGN = "quickstart.yaml"
_PACKAGED = Path(__file__).parent / "quickstart_files"
_REPOSITORY = Path(__file__).parents[2] / "search_spaces" / "quickstart"


@app.command()
def quickstart(
    to: Annotated[Path, typer.Option("--to", help="A new folder for the files.")],
) -> None:
    """Copy small models, tasks and a campaign to play with."""
    with exit_codes():
        campaign = copy_quickstart(to)
        say(campaign)
        hint(f"run it: evomerge search {campaign}")


def quickstart_files() -> Path:
    """Find the files: inside an installed wheel, or in the repository.

    Raises:
        InputError: they are in neither.
    """
    for folder in (_PACKAGED, _REPOSITORY):
        if (folder / CAMPAIGN).is_file():
            return folder
    raise InputError(
        f"{_PACKAGED}: this installation lacks the quickstart's files; install evomerge from a "
        "wheel, or from its repository"
    )


def copy_quickstart(to: Path) -> Path:
    """Copy the quickstart into a new folder; returns its campaign file.

    Raises:
        InputError: the folder exists and is not empty, or cannot be written.
    """
    source = quickstart_files()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"{to}: exists and is not an empty folder; choose another --to")
    try:
        shutil.copytree(
            source, to, ignore=shutil.ignore_patterns("__pycache__", "runs"), dirs_exist_ok=True
        )
    except OSError as error:
        raise InputError(f"{to}: cannot be written ({error})") from None
    return to / CAMPAIGN
