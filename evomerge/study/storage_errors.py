"""What a database raises, in the user's words."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from evomerge.common.errors import InputError
from evomerge.study.storage_url import describe


class ConnectionLostError(InputError):
    """Raised when the connection to a server, and with it the driver's lock, is lost."""


def database_errors() -> tuple[type[BaseException], ...]:
    """The errors that databases raise, of the packages that are imported: others raise none."""
    found: list[type[BaseException]] = [sqlite3.Error]
    if "optuna" in sys.modules:
        found.append(sys.modules["optuna"].exceptions.StorageInternalError)
    if "sqlalchemy" in sys.modules:
        found.append(sys.modules["sqlalchemy"].exc.SQLAlchemyError)
    return tuple(found)


@contextmanager
def errors_explained(storage: str, hint: str = "nothing recorded is lost") -> Iterator[None]:
    """Turn what a database raises (disk full, read-only, unreachable) into one clear message.

    Raises:
        InputError: names the storage and the database's reason.
    """
    try:
        yield
    except database_errors() as error:
        raise InputError(
            f"{describe(storage)}: the study cannot be read or written ({reason_of(error)}); {hint}"
        ) from error


def reason_of(error: BaseException) -> str:
    """The database's own reason, in one line."""
    cause = cause_of(error)
    return " ".join(str(getattr(cause, "orig", None) or cause).split())


def is_outage(error: BaseException) -> bool:
    """Tell whether the same operation may succeed later: unreachable, restarting, full."""
    import sqlalchemy

    cause = cause_of(error)
    if isinstance(cause, sqlalchemy.exc.DBAPIError) and cause.connection_invalidated:
        return True
    passing = (
        ConnectionLostError,
        sqlalchemy.exc.OperationalError,
        sqlalchemy.exc.InterfaceError,
    )
    return isinstance(cause, passing)


def cause_of(error: BaseException) -> BaseException:
    """The SQLAlchemy error behind an error of Optuna's; any other error itself."""
    optuna = sys.modules.get("optuna")
    ours = optuna is not None and isinstance(error, optuna.exceptions.OptunaError)
    return (ours and error.__cause__) or error
