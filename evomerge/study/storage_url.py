"""Storage URLs: the SQLite file behind one, and how messages name it."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

from evomerge.common.errors import InputError

_FILE = re.compile(r"sqlite:///([^?]*)")
"""A plain SQLite URL, which is read here: SQLAlchemy takes a third of a second to import."""


def sqlite_url(path: Path) -> str:
    """The storage URL of a SQLite file, escaped as SQLAlchemy does it."""
    return "sqlite:///" + urllib.parse.quote(str(path), safe=" +/")


def sqlite_path(storage: str) -> Path | None:
    """The file behind a SQLite URL; None for servers and for SQLite in memory.

    Raises:
        InputError: not a database URL.
    """
    plain = _FILE.fullmatch(storage)
    if plain:
        database: str | None = urllib.parse.unquote(plain[1])
    else:
        import sqlalchemy

        try:
            url = sqlalchemy.make_url(storage)
        except sqlalchemy.exc.ArgumentError:
            raise InputError(
                f"study.storage: {storage!r} is not a database URL; write 'sqlite', or a URL such "
                "as sqlite:///runs/study.db or postgresql://user@host/database"
            ) from None
        database = url.database if url.get_backend_name() == "sqlite" else None
    return None if database in (None, "", ":memory:") else Path(str(database))


def describe(storage: str) -> str:
    """The storage as messages name it: a file's path, or a URL without its password."""
    path = sqlite_path(storage)
    if path is not None:
        return str(path)
    import sqlalchemy

    return sqlalchemy.make_url(storage).render_as_string()
