"""Open Optuna's RDB storage: the engine's settings, and what to do where it cannot be opened."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import sqlalchemy.exc
import sqlalchemy.pool
import tenacity

from evomerge.common.errors import InputError
from evomerge.study.at_once import AtOnceStorage
from evomerge.study.sqlite_reader import BUSY_SECONDS, read_only_uri
from evomerge.study.storage_errors import cause_of, errors_explained
from evomerge.study.storage_url import describe, sqlite_path

BEGINNING = "if its search has only just begun, look again in a moment"
"""Hint for a reader while the driver is still making the tables."""

DRIVERS = {
    "postgresql": "pip install 'evomerge[postgresql]', and write postgresql+psycopg://…",
    "mysql": "pip install 'evomerge[mysql]', and write mysql+pymysql://…",
}
"""Backend → how to get a Python driver for it."""

LIBPQ = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 6,
    "tcp_user_timeout": 90_000,
}
"""libpq's parameters; seconds, but for the last, which is in milliseconds."""


def open_for_writing(
    storage: str, on_connect: Callable[[Any], None] | None = None
) -> optuna.storages.RDBStorage:
    """Open the storage for writing; create its tables where they are missing.

    SQLite is put in WAL mode with synchronous=NORMAL: a `kill -9` loses nothing that was committed,
    and readers never block the driver. On a server everything goes through one connection.

    Args:
        storage: the URL.
        on_connect: is given every new connection to a server (DBAPI's object) before it is used.

    Raises:
        InputError: it cannot be opened; and whatever `on_connect` raises.
    """
    if sqlite_path(storage) is not None:
        return _open(
            storage,
            engine_kwargs={
                "connect_args": {"timeout": BUSY_SECONDS},
                "pool_events": [(_use_wal, "connect")],
            },
        )
    _make_tables(storage)
    events = []
    if on_connect is not None:
        events.append((lambda connection, _record: on_connect(connection), "connect"))
    return _open(
        storage,
        skip_table_creation=True,
        skip_compatibility_check=True,
        engine_kwargs={
            "connect_args": _connect_args(storage),
            "poolclass": sqlalchemy.pool.StaticPool,
            "pool_pre_ping": False,
            "pool_events": events,
        },
    )


def close(rdb: optuna.storages.RDBStorage) -> None:
    """Close a storage's connections."""
    rdb.remove_session()
    rdb.engine.dispose()


def open_for_reading(storage: str) -> optuna.storages.RDBStorage:
    """Open the storage for reading; a SQLite file is opened read-only.

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


def _open(
    storage: str, url: str | None = None, hint: str = "nothing is changed", **options: Any
) -> optuna.storages.RDBStorage:
    with errors_explained(storage, hint):
        try:
            return AtOnceStorage(url or storage, **options)
        except ImportError as error:
            raise InputError(
                f"{describe(storage)}: the database's Python driver is not installed "
                f"({error.__cause__ or error}){_driver_hint(storage)}"
            ) from error
        except RuntimeError as error:  # Optuna's tables are of another version
            raise InputError(f"{describe(storage)}: {error}") from error


def _statement_failed(error: BaseException) -> bool:
    cause = cause_of(error.__cause__ or error)
    return isinstance(cause, sqlalchemy.exc.DBAPIError) and cause.statement is not None


@tenacity.retry(  # searches that begin together in an empty database get into each other's way
    retry=tenacity.retry_if_exception(_statement_failed),
    stop=tenacity.stop_after_attempt(5),
    wait=tenacity.wait_random(0.2, 1),
    reraise=True,
)
def _make_tables(storage: str) -> None:
    """Create a server's tables where missing; check that they are of this Optuna's version.

    Not under the driver's lock: Optuna makes a second connection for it.
    """
    _open(storage, engine_kwargs={"connect_args": _connect_args(storage)}).engine.dispose()


def _driver_hint(storage: str) -> str:
    backend = sqlalchemy.make_url(storage).get_backend_name()
    return "; " + DRIVERS[backend] if backend in DRIVERS else ""


def _connect_args(storage: str) -> dict[str, Any]:
    """Make libpq notice within a minute or two that the server's machine is gone."""
    url = sqlalchemy.make_url(storage)
    if url.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    return {key: value for key, value in LIBPQ.items() if key not in url.query}


def _read_only_url(path: Path) -> str:
    """SQLAlchemy's form of `read_only_uri`."""
    uri, _, query = read_only_uri(path).partition("?")
    given = {**dict(urllib.parse.parse_qsl(query)), "uri": "true"}
    return sqlalchemy.URL.create("sqlite", database=uri, query=given).render_as_string()


def _use_wal(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from announcing the new study; the user's own verbosity comes back."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
