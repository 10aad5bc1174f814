"""Remember in the user's cache what is decided by its inputs alone and takes long to find out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from evomerge.common.data_files import cache_folder
from evomerge.common.digest import content_digest


def recall(kind: str, key: Any) -> Any:
    """Return what was remembered for a key; None where nothing was, or it cannot be read."""
    try:
        return json.loads(_place(kind, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def remember(kind: str, key: Any, value: Any) -> None:
    """Keep a JSON value for a key, in place of an earlier one; no more where that cannot be."""
    write_quietly(_place(kind, key), json.dumps(value))


def remembered(kind: str, key: Any, find: Callable[[], Any]) -> Any:
    """Return `find()`, a JSON value, or what it gave for the same key before.

    Args:
        key: a JSON value that decides the result; None: nothing does, and `find` is called.
    """
    known = None if key is None else recall(kind, key)
    if known is None:
        known = [find()]
        if key is not None:
            remember(kind, key, known)
    return known[0]


def write_quietly(place: Path, text: str) -> None:
    """Write a file whole or not at all; do nothing where nothing can be written."""
    partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, place)
    except OSError:
        with suppress(OSError):
            partial.unlink()


def _place(kind: str, key: Any) -> Path:
    return cache_folder(kind) / f"{content_digest(key)}.json"
