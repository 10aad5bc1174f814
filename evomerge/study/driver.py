"""The driver that works on a study: its name beside the study's file, and whether it lives."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from evomerge.common.errors import InputError
from evomerge.study.storage_url import sqlite_path

_CLOCKS_DIFFER = 5.0
"""Seconds by which a file's time and a process's may be off."""

Driver = Literal["at work", "stopped", "dead"]
"""A driver that ends in order says so; one that was killed, or whose machine went down, is dead."""


def driver_of(storage: str) -> Driver | None:
    """Tell whether a driver works on the study; None where that cannot be told from here."""
    path = sqlite_path(storage)
    return None if path is None else driver_at(path)


def driver_at(path: Path) -> Driver | None:
    """Tell whether the driver is at work that wrote its name beside `path`; see `driver_of`."""
    place = driver_file(path)
    try:
        named, written = json.loads(place.read_text()), place.stat().st_mtime
        if named["host"] != socket.gethostname():
            return None
        pid = named["pid"]
    except (OSError, ValueError, KeyError):
        return "stopped"
    import psutil  # late, for of most studies there is no driver

    try:
        # a process that began after the name was written has only the number of the driver's
        begun = psutil.Process(pid).create_time()
        return "at work" if begun < written + _CLOCKS_DIFFER else "dead"
    except psutil.NoSuchProcess:
        return "dead"
    except psutil.Error:
        return "at work"
    except (OSError, ValueError):
        return "stopped"


@contextmanager
def driver_named(path: Path) -> Iterator[None]:
    """Keep this driver's name beside `path`, where `driver_at` finds it; it locks nothing.

    A folder that holds nothing afterwards is not left behind.

    Raises:
        InputError: the folder cannot be written.
    """
    place = driver_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(this_driver()))
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        with suppress(OSError):  # it holds something
            path.parent.rmdir()


def this_driver() -> dict[str, Any]:
    """Name this driver by pid and host."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def refusal(where: str, holder: Any) -> InputError:
    """Say why a second driver may not start; `holder`: the first one's `this_driver`, if known."""
    named = f" (pid {holder['pid']}, host {holder['host']})" if holder else ""
    return InputError(
        f"{where}: another evomerge search{named} is running on this study; "
        "wait for it, stop it, or use another --out"
    )


def driver_file(path: Path) -> Path:
    """The file that names the driver of what lies at `path`."""
    return Path(f"{path}.driver")


def cannot_write(path: Path, error: OSError) -> InputError:
    """Say that the folder of `path` cannot be written."""
    return InputError(f"{path}: the study's folder cannot be written ({error.strerror})")
