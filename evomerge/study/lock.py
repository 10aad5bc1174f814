"""One driver per study: a lock beside a SQLite file, an advisory lock on a server."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import filelock
import psutil
import sqlalchemy
import tenacity

from evomerge.common.errors import InputError
from evomerge.study.storage import ConnectionLostError, describe, sqlite_path

_CLOCKS_DIFFER = 5.0
"""Seconds by which a file's time and a process's may be off."""
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
        self._driver = _driver_file(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except filelock.Timeout:
            raise refusal(str(path), self._holder()) from None
        except OSError as error:
            raise _cannot_write(path, error) from None
        try:
            self._driver.write_text(json.dumps(this_driver()))
        except OSError as error:
            self._lock.release()
            raise _cannot_write(path, error) from None

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


Driver = Literal["at work", "stopped", "dead"]
"""A driver that ends in order says so; one that was killed, or whose machine went down, is dead."""


def driver_of(storage: str) -> Driver | None:
    """Tell whether a driver works on the study; None where that cannot be told from here."""
    path = sqlite_path(storage)
    return None if path is None else driver_at(path)


def driver_at(path: Path) -> Driver | None:
    """Tell whether the driver is at work that wrote its name beside `path`; see `driver_of`."""
    place = _driver_file(path)
    try:
        named, written = json.loads(place.read_text()), place.stat().st_mtime
        if named["host"] != socket.gethostname():
            return None
        # a process that began after the name was written has only the number of the driver's
        begun = psutil.Process(named["pid"]).create_time()
        return "at work" if begun < written + _CLOCKS_DIFFER else "dead"
    except psutil.NoSuchProcess:
        return "dead"
    except psutil.Error:
        return "at work"
    except (OSError, ValueError, KeyError):
        return "stopped"


@contextmanager
def driver_named(path: Path) -> Iterator[None]:
    """Keep this driver's name beside `path`, where `driver_at` finds it; it locks nothing.

    A folder that holds nothing afterwards is not left behind.

    Raises:
        InputError: the folder cannot be written.
    """
    place = _driver_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(this_driver()))
    except OSError as error:
        raise _cannot_write(path, error) from None
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


def _driver_file(path: Path) -> Path:
    return Path(f"{path}.driver")


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: the study's folder cannot be written ({error.strerror})")
