"""The small models, tasks and campaign to play with, copied out of the package."""

from __future__ import annotations

import shutil
from pathlib import Path

from evomerge.common.errors import InputError

CAMPAIGN = "quickstart.yaml"
_PACKAGED = Path(__file__).parent / "quickstart_files"
_REPOSITORY = Path(__file__).parents[2] / "search_spaces" / "quickstart"


def quickstart_files() -> Path:
    """Where the files lie: inside an installed wheel, or in the repository.

    Raises:
        InputError: in neither.
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
