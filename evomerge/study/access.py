"""Access to one study's storage: locked for its driver, errors explained, outages waited for."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from evomerge.common.errors import EvomergeError, InputError
from evomerge.study.driver import refusal, this_driver
from evomerge.study.sqlite_reader import SqliteReader, open_reader
from evomerge.study.storage_errors import (
    ConnectionLostError,
    errors_explained,
    is_outage,
    reason_of,
)
from evomerge.study.storage_url import describe, sqlite_path

if TYPE_CHECKING:
    import optuna
    import tenacity

    from evomerge.study.lock import FileLock, ServerLock

T = TypeVar("T")

DRIVER = "driver"
"""System attribute of the study: its latest driver on a server."""


@dataclass
class OutagePolicy:
    """Limits how long a database that is away is waited for.

    Attributes:
        seconds: duration of one outage.
        say: shows the user a line.
    """

    seconds: float = 0.0
    say: Callable[[str], None] = lambda _message: None


class Access:
    """Opens the storage of one study; a writable one holds the driver's lock.

    Attributes:
        storage: Optuna's, or what reads a SQLite file in its place.
    """

    def __init__(
        self, url: str, study: str, *, writable: bool, outages: OutagePolicy | None = None
    ) -> None:
        """Open the storage, under the driver's lock when `writable`.

        Raises:
            InputError: it cannot be opened, or another driver is running.
        """
        self._url, self._study = url, study
        self._outages = outages or OutagePolicy()
        self._signed: tuple[int, dict[str, Any]] | None = None
        self._ended: EvomergeError | None = None
        self._lock: FileLock | ServerLock | None = None
        self._rdb: optuna.storages.RDBStorage | None = None
        self._reader = None if writable else open_reader(url)
        self.storage: Any = self._reader or self._opened_by_optuna(writable)
        self._file = sqlite_path(url) if writable else None
        self._opened = self._file and _inode(self._file)

    def _opened_by_optuna(self, writable: bool) -> optuna.storages.BaseStorage:
        """Open Optuna's storage, under the driver's lock when `writable`."""
        import optuna

        from evomerge.study.lock import TakenError, driver_lock
        from evomerge.study.storage import open_for_reading, open_for_writing

        if not writable:
            self._rdb = open_for_reading(self._url)
            return optuna.storages.get_storage(self._rdb)
        lock = driver_lock(self._url, self._study)
        try:
            self._rdb = open_for_writing(self._url, lock.on_connect)
        except TakenError:
            lock.release()
            where = f"study {self._study!r} in {describe(self._url)}"
            raise refusal(where, self._holder()) from None
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        return self._rdb  # without Optuna's cache, which would hold all that is written

    @property
    def reader(self) -> SqliteReader | None:
        """Reads the SQLite file in the storage's place, the driver's own too; None of others."""
        if self._reader is None and self._lock is not None:
            self._reader = open_reader(self._url)
        return self._reader

    @property
    def engine(self) -> Any:
        """SQLAlchemy's engine; only of a storage that Optuna has opened."""
        assert self._rdb is not None
        return self._rdb.engine

    def close(self) -> None:
        """Close the storage and let another driver in."""
        if self._reader is not None:
            self._reader.close()
        if self._rdb is not None:
            from evomerge.study.storage import close

            close(self._rdb)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def sign(self, study_id: int) -> None:
        """Note in the study that this is its driver; from now on, wait for a server's outages.

        Raises:
            InputError: the storage cannot be written.
        """
        from evomerge.study.lock import ServerLock

        if isinstance(self._lock, ServerLock):
            signature = {"token": uuid.uuid4().hex, **this_driver()}
            self.do(lambda: self.storage.set_study_system_attr(study_id, DRIVER, signature))
            self._signed = study_id, signature
            self._lock.guard(self.engine)

    def stop_waiting(self) -> None:
        """Wait for no outage any more: the user wants to stop."""
        self._outages.seconds = 0.0

    def do(self, operation: Callable[[], T], arrived: Callable[[], T | None] | None = None) -> T:
        """Return the result of an operation on the storage; in an outage, once that is back.

        Args:
            operation: may be tried again, unless `arrived` finds a result.
            arrived: looks for the result of an operation that seemed to fail but was done (the
                server died after the commit and before its answer); None: there is none.

        Raises:
            InputError: the storage cannot be read or written.
            EvomergeError: it did not come back in time, or another driver took over meanwhile;
                nothing is written from then on.
        """
        if self._ended is not None:
            raise self._ended
        self._check_file()
        with errors_explained(self._url):
            try:
                found = operation()
                self._check_file()
                return found
            except Exception as error:
                if self._signed is None or not is_outage(error):
                    raise
            return self._wait(lambda: self._retry(operation, arrived))

    def _check_file(self) -> None:
        """Notice that a SQLite file was deleted or replaced, where writes would go to nobody.

        Raises:
            EvomergeError: it was; nothing is written from then on.
        """
        if self._file is None or _inode(self._file) == self._opened:
            return
        self._ended = EvomergeError(
            f"{self._file}: was deleted or replaced while the search ran, so that what it finds "
            "can no longer be recorded; put the file back, if you moved it, and run the same "
            "command again, or begin anew with another --out"
        )
        raise self._ended

    def _retry(self, operation: Callable[[], T], arrived: Callable[[], T | None] | None) -> T:
        self._renew()
        found = arrived() if arrived else None
        return operation() if found is None else found

    def _wait(self, operation: Callable[[], T]) -> T:
        import tenacity

        where, started = describe(self._url), time.monotonic()
        # Ctrl-C leaves it so: nothing more is tried.
        self._ended = EvomergeError(f"{where}: was away when the search was stopped")
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_outage),
            stop=tenacity.stop_after_delay(self._outages.seconds),
            wait=tenacity.wait_exponential(multiplier=0.25, max=5),
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            found = patiently(operation)
        except Exception as error:
            if not is_outage(error):
                raise
            self._ended = EvomergeError(
                f"{where}: is away ({reason_of(error)}); nothing recorded is lost, and the same "
                "command goes on when it is back"
            )
            raise self._ended from error
        self._ended = None
        if patiently.statistics["attempt_number"] > 1:
            self._outages.say(f"{where} is back after {time.monotonic() - started:.0f} s")
        return found

    def _tell(self, state: tenacity.RetryCallState) -> None:
        """Tell the user, once per outage, that it is waited for."""
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number == 1 and error is not None:
            self._outages.say(
                f"{describe(self._url)} is away ({reason_of(error)}); "
                f"waiting for it, up to {self._outages.seconds / 60:g} min"
            )

    def _renew(self) -> None:
        """Connect again, under the lock, and check that no other driver was here meanwhile.

        Raises:
            EvomergeError: one has.
            ConnectionLostError: the server has not noticed yet that our own connection is lost.
        """
        from evomerge.study.lock import ServerLock, TakenError

        assert isinstance(self._lock, ServerLock)
        assert self._signed is not None
        study_id, signature = self._signed
        try:
            with self._lock.renewing(self.engine):
                latest = self.storage.get_study_system_attrs(study_id).get(DRIVER)
        except TakenError:
            latest = self._holder()
            if latest in (None, signature):
                raise ConnectionLostError(
                    f"{describe(self._url)}: the server still keeps the connection that was lost, "
                    "and with it the study's lock; end that connection on the server"
                ) from None
        if latest != signature:
            named = f" (pid {latest['pid']}, host {latest['host']})" if latest else ""
            self._ended = EvomergeError(
                f"study {self._study!r} in {describe(self._url)}: another evomerge search{named} "
                "took over while the database was away; this one stops, and records nothing more"
            )
            raise self._ended

    def _holder(self) -> Any:
        """Read the latest driver's signature by a separate connection; None if that fails."""
        from evomerge.study.storage import close, open_for_reading

        with suppress(InputError, KeyError), errors_explained(self._url):
            rdb = open_for_reading(self._url)
            try:
                study_id = rdb.get_study_id_from_name(self._study)
                return rdb.get_study_system_attrs(study_id).get(DRIVER)
            finally:
                close(rdb)
        return None


def _inode(file: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file; None if there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
