"""Opening Optuna's RDB storage: SQLite settings, the driver's lock, errors in the user's words."""

from __future__ import annotations

import json
import os
import socket
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import optuna
import sqlalchemy
import sqlalchemy.exc

from evomerge.errors import InputError

BUSY_SECONDS = 30
"""How long SQLite waits for another process's write before it gives up."""

BEGINNING = "if its search has only just begun, look again in a moment"
"""What a reader is told while the driver is still making the tables."""


def sqlite_url(path: Path) -> str:
    """The storage URL of a SQLite file; odd characters in the path are escaped."""
    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


def sqlite_path(storage: str) -> Path | None:
    """The file behind a SQLite URL; None for servers and for SQLite in memory.

    Raises:
        InputError: not a database URL.
    """
    try:
        url = sqlalchemy.make_url(storage)
    except sqlalchemy.exc.ArgumentError:
        raise InputError(
            f"study.storage: {storage!r} is not a database URL; write 'sqlite', or a URL such as "
            "sqlite:///runs/study.db or postgresql://user@host/database"
        ) from None
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


def describe(storage: str) -> str:
    """The storage as messages name it: a file's path, or a URL without its password."""
    path = sqlite_path(storage)
    return sqlalchemy.make_url(storage).render_as_string() if path is None else str(path)


def open_for_writing(storage: str) -> optuna.storages.RDBStorage:
    """The storage, its tables created where missing; SQLite in WAL mode with synchronous=NORMAL.

    With that mode a `kill -9` loses nothing that was committed, and readers never block the
    driver.

    Raises:
        InputError: it cannot be opened.
    """
    if sqlite_path(storage) is None:
        return _open(storage)
    return _open(
        storage,
        engine_kwargs={
            "connect_args": {"timeout": BUSY_SECONDS},
            "pool_events": [(_use_wal, "connect")],
        },
    )


def open_for_reading(storage: str) -> optuna.storages.RDBStorage:
    """The storage as it stands; a SQLite file is opened read-only.

    Raises:
        InputError: it cannot be opened, or there is no such file.
    """
    path = sqlite_path(storage)
    if path is None:
        return _open(storage, hint=BEGINNING, skip_table_creation=True)
    if not path.is_file():
        raise InputError(f"{path}: no study here (no such file)")
    return _open(
        storage,
        url=_read_only_url(path.absolute()),
        hint=BEGINNING,
        engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}},
        skip_table_creation=True,
    )


@contextmanager
def errors_explained(storage: str, hint: str = "nothing recorded is lost") -> Iterator[None]:
    """Turn what a database raises (disk full, read-only, unreachable) into one clear message.

    Raises:
        InputError: names the storage and the database's reason.
    """
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.OptunaError) else error
        reason = getattr(cause, "orig", None) or cause or error
        raise InputError(
            f"{describe(storage)}: the study cannot be read or written ({reason}); {hint}"
        ) from error


class DriverLock:
    """One driver per study: a lock beside the SQLite file, freed by the system if we die."""

    def __init__(self, path: Path) -> None:
        """Take the lock of the SQLite file at `path`, or refuse at once.

        Raises:
            InputError: another driver holds it, or the folder cannot be written.
        """
        self._lock = filelock.FileLock(f"{path}.lock", thread_local=False)
        self._driver = Path(f"{path}.driver")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except filelock.Timeout:
            raise InputError(
                f"{path}: another evomerge search{self._holder()} is running on this study; "
                "wait for it, stop it, or use another --out"
            ) from None
        except OSError as error:
            raise _cannot_write(path, error) from None
        try:
            self._driver.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        except OSError as error:
            self._lock.release()
            raise _cannot_write(path, error) from None

    def release(self) -> None:
        """Let another driver in."""
        self._driver.unlink(missing_ok=True)
        self._lock.release()

    def _holder(self) -> str:
        with suppress(OSError, ValueError, KeyError):
            driver = json.loads(self._driver.read_text())
            return f" (pid {driver['pid']}, host {driver['host']})"
        return ""


def take_lock(storage: str) -> DriverLock | None:
    """The driver's lock; None for a server, whose advisory lock would be taken here.

    Raises:
        InputError: as `DriverLock`.
    """
    path = sqlite_path(storage)
    return None if path is None else DriverLock(path)


def _open(
    storage: str, url: str | None = None, hint: str = "nothing is changed", **options: Any
) -> optuna.storages.RDBStorage:
    with errors_explained(storage, hint):
        try:
            return optuna.storages.RDBStorage(url or storage, **options)
        except ImportError as error:
            raise InputError(
                f"{describe(storage)}: the database's Python driver is not installed "
                f"({error.__cause__ or error})"
            ) from error
        except RuntimeError as error:  # Optuna's tables are of another version
            raise InputError(f"{describe(storage)}: {error}") from error


def _read_only_url(path: Path) -> str:
    query = {"mode": "ro", "uri": "true"}
    if not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists():
        # A finished study in a folder we may not write: SQLite would fail to make its WAL files.
        query["immutable"] = "1"
    database = f"file:{urllib.parse.quote(str(path))}"
    return sqlalchemy.URL.create("sqlite", database=database, query=query).render_as_string()


def _use_wal(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: the study's folder cannot be written ({error.strerror})")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from announcing the new study; the user's own verbosity comes back."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
