"""One driver per study: a lock beside a SQLite file, an advisory lock on a server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import sqlalchemy
import tenacity

from evomerge.common.errors import InputError
from evomerge.study.driver import cannot_write, driver_file, refusal, this_driver
from evomerge.study.storage_errors import ConnectionLostError
from evomerge.study.storage_url import describe, sqlite_path

GRACE_SECONDS = 3
"""Time that a server is given to notice that a killed driver is gone."""


class TakenError(Exception):
    """Raised when another driver holds the lock."""


class FileLock:
    """Locks a file beside the SQLite file; the system frees it if the driver dies."""

    on_connect = None

    def __init__(self, path: Path) -> None:
        """Take the lock of the SQLite file at `path`, or refuse at once.

        Raises:
            InputError: another driver holds it, or the folder cannot be written.
        """
        self._lock = filelock.FileLock(f"{path}.lock", thread_local=False)
        self._driver = driver_file(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except filelock.Timeout:
            raise refusal(str(path), self._holder()) from None
        except OSError as error:
            raise cannot_write(path, error) from None
        try:
            self._driver.write_text(json.dumps(this_driver()))
        except OSError as error:
            self._lock.release()
            raise cannot_write(path, error) from None

    def release(self) -> None:
        """Let another driver in."""
        self._driver.unlink(missing_ok=True)
        self._lock.release()

    def _holder(self) -> Any:
        with suppress(OSError, ValueError):
            return json.loads(self._driver.read_text())
        return None


class ServerLock:
    """Takes an advisory lock with the one connection that the driver writes through.

    The server frees it when the connection ends, and a connection that has ended commits nothing:
    whatever is written is written under the lock. Once guarded, a new connection is made only
    while `renewing`, so that no write goes on silently after an outage during which another driver
    may have come and gone.
    """

    def __init__(self, storage: str, study: str) -> None:
        """`study` is the name of one in the storage; its lock is taken by the first connection."""
        url = sqlalchemy.make_url(storage)
        key = hashlib.sha256(f"evomerge\0{url.database}\0{study}".encode()).digest()
        self._statements = LOCKS[url.get_backend_name()](key)
        self._closed = False

    def on_connect(self, connection: Any) -> None:
        """Take the lock on a new connection.

        Raises:
            TakenError: another connection holds it.
        """
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda taken: not taken),
            stop=tenacity.stop_after_delay(GRACE_SECONDS),
            wait=tenacity.wait_fixed(0.1),
            retry_error_callback=lambda _state: False,
        )
        if not patiently(self._try, connection):
            raise TakenError

    def guard(self, engine: sqlalchemy.Engine) -> None:
        """From now on let the engine connect while `renewing` only."""
        self._closed = True
        sqlalchemy.event.listen(engine, "do_connect", self._may_connect)

    @contextmanager
    def renewing(self, engine: sqlalchemy.Engine) -> Iterator[None]:
        """Drop the connection; within, a new one may be made: it takes the lock, or raises."""
        engine.dispose()
        self._closed = False
        try:
            yield
        finally:
            self._closed = True

    def release(self) -> None:
        """Do nothing: the lock ends with its connection."""

    def _may_connect(self, *_: Any) -> None:
        if self._closed:
            raise ConnectionLostError("the connection to the database was lost")

    def _try(self, connection: Any) -> bool:
        cursor = connection.cursor()
        try:
            for statement in self._statements:
                cursor.execute(statement)
            (taken,) = cursor.fetchone()
        finally:
            cursor.close()
        connection.commit()  # ends the transaction, not the lock
        return bool(taken)


def driver_lock(storage: str, study: str) -> FileLock | ServerLock:
    """The driver's lock of a study.

    Raises:
        InputError: as `FileLock`, or there is no such lock on databases of this kind.
    """
    path = sqlite_path(storage)
    if path is not None:
        return FileLock(path)
    if sqlalchemy.make_url(storage).get_backend_name() not in LOCKS:
        raise InputError(
            f"study.storage: {describe(storage)} can hold no search; write 'sqlite', or the URL of "
            "a SQLite file, of PostgreSQL, MySQL or MariaDB"
        )
    return ServerLock(storage, study)


def _postgresql(key: bytes) -> tuple[str, ...]:
    number = int.from_bytes(key[:8], "big", signed=True)
    # So that the lock of a driver whose machine is gone is free within two minutes.
    keepalive = ("idle = 60", "interval = 10", "count = 6")
    settings = (f"SET tcp_keepalives_{setting}" for setting in keepalive)
    return (*settings, f"SELECT pg_try_advisory_lock({number})")


def _mysql(key: bytes) -> tuple[str, ...]:
    return (f"SELECT GET_LOCK('evomerge-{key.hex()[:40]}', 0)",)


LOCKS: dict[str, Callable[[bytes], tuple[str, ...]]] = {
    "postgresql": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
}
"""Backend → statements that take a lock without waiting; the last one says whether it is ours."""
