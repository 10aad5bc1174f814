"""Read a study in a SQLite file as Optuna's storage does, in a tenth of the time to begin.

Optuna, SQLAlchemy and Alembic take most of a second to import, and a command that looks at a study
takes half of one. Only this file knows Optuna's tables, and only those of `REVISION`: of any other
revision, and of a file that cannot be opened, `open_reader` gives None, and Optuna has its say.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import threading
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from evomerge.study.finished_trial import FINISHED, FinishedTrial, State
from evomerge.study.storage_url import sqlite_path

REVISION = "v3.2.0.a"
"""The revision of Optuna's tables that is read here."""
BUSY_SECONDS = 30
"""Seconds that SQLite waits for another process's write."""
_NOT_FINITE = {"NAN": math.nan, "INF_POS": math.inf, "INF_NEG": -math.inf}


@dataclass(frozen=True)
class Named:
    """A study of the file, by name."""

    study_name: str


class SqliteReader:
    """The methods of Optuna's storage by which a study is read, over one read-only connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """`connection`: to a file whose tables are of `REVISION`."""
        self._connection = connection
        self._alone = threading.Lock()
        self._trials: dict[int, FinishedTrial] = {}  # by Optuna's ids, of all studies together

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def get_all_studies(self) -> list[Named]:
        """List the studies of the file."""
        with self._snapshot() as rows:
            found = rows("SELECT study_name FROM studies ORDER BY study_id")
            return [Named(name) for (name,) in found]

    def get_study_id_from_name(self, study_name: str) -> int:
        """Find a study.

        Raises:
            KeyError: there is none of this name.
        """
        with self._snapshot() as rows:
            for (found,) in rows("SELECT study_id FROM studies WHERE study_name = ?", study_name):
                return int(found)
        raise KeyError(study_name)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Read the study's user attributes."""
        return self._attributes("study_user_attributes", study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Read the study's system attributes."""
        return self._attributes("study_system_attributes", study_id)

    def get_n_trials(self, study_id: int) -> int:
        """Count the trials, unfinished ones too."""
        with self._snapshot() as rows:
            [(count,)] = rows("SELECT COUNT(*) FROM trials WHERE study_id = ?", study_id)
        return int(count)

    def get_all_trials(self, study_id: int, deepcopy: bool = True) -> list[FinishedTrial]:
        """Read the finished trials, in their order; what was read before is not read again."""
        with self._snapshot() as rows:
            found = {
                key: (number, state, moment)
                for key, number, state, moment in rows(
                    "SELECT trial_id, number, state, datetime_complete FROM trials "
                    "WHERE study_id = ? ORDER BY trial_id",
                    study_id,
                )
                if state in FINISHED
            }
            new = [key for key in found if key not in self._trials]
            if new:
                parts = self._parts(rows, study_id, min(new))
                for key in new:
                    number, state, moment = found[key]
                    self._trials[key] = FinishedTrial(
                        number=number,
                        state=State[state],
                        datetime_complete=moment and datetime.fromisoformat(moment),
                        **{name: part[key] for name, part in parts.items()},
                    )
        return [self._trials[key] for key in found]

    def _refuse(self, *_: Any, **__: Any) -> Any:
        """Refuse to write, in SQLite's words."""
        raise sqlite3.OperationalError("attempt to write a readonly database")

    set_study_user_attr = set_study_system_attr = create_new_trial = _refuse

    def _parts(self, rows: Any, study_id: int, first: int) -> dict[str, Any]:
        """Read the parts of trials from the id `first` on: field → trial's id → content."""

        def of(table: str, columns: str, order: str) -> Iterator[Any]:
            return rows(
                f"SELECT p.trial_id, {columns} FROM {table} p JOIN trials t "
                f"ON t.trial_id = p.trial_id WHERE t.study_id = ? AND p.trial_id >= ? "
                f"ORDER BY p.{order}",
                study_id,
                first,
            )

        values: dict[int, float | None] = defaultdict(lambda: None)
        for key, number, kind in of("trial_values", "value, value_type", "objective DESC"):
            values[key] = _NOT_FINITE.get(kind, number)
        steps: dict[int, dict[int, float]] = defaultdict(dict)
        columns = "step, intermediate_value, intermediate_value_type"
        for key, step, number, kind in of("trial_intermediate_values", columns, "step"):
            steps[key][step] = _NOT_FINITE.get(kind, number)
        params: dict[int, dict[str, Any]] = defaultdict(dict)
        columns = "param_name, param_value, distribution_json"
        for key, name, number, distribution in of("trial_params", columns, "param_id"):
            params[key][name] = _natural(number, distribution)
        attributes = {}
        for kind in ("user", "system"):
            table = f"trial_{kind}_attributes"
            held: dict[int, dict[str, Any]] = defaultdict(dict)
            for key, name, text in of(table, "key, value_json", f"{table[:-1]}_id"):
                held[key][name] = json.loads(text)
            attributes[f"{kind}_attrs"] = held
        return {"value": values, "intermediate_values": steps, "params": params, **attributes}

    def _attributes(self, table: str, study_id: int) -> dict[str, Any]:
        with self._snapshot() as rows:
            query = f"SELECT key, value_json FROM {table} WHERE study_id = ?"
            return {key: json.loads(text) for key, text in rows(query, study_id)}

    @contextmanager
    def _snapshot(self) -> Iterator[Any]:
        """Give a function `(query, *parameters) → rows`; all that it reads is of one moment."""
        with self._alone:
            self._connection.execute("BEGIN")
            try:
                yield lambda query, *given: self._connection.execute(query, given)
            finally:
                self._connection.rollback()


def open_reader(storage: str) -> SqliteReader | None:
    """Open the SQLite file behind a URL for reading; None where Optuna has to do it."""
    path = None if "?" in storage else sqlite_path(storage)
    if path is None or not path.is_file():
        return None
    with suppress(sqlite3.Error):
        connection = sqlite3.connect(
            read_only_uri(path.absolute()),
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchall()
            if found == [(REVISION,)]:
                return SqliteReader(connection)
        except BaseException:
            connection.close()
            raise
        connection.close()
    return None


def read_only_uri(path: Path) -> str:
    """The URI by which SQLite opens a file, an absolute path, and changes nothing."""
    uri = f"file:{urllib.parse.quote(str(path))}?mode=ro"
    if not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists():
        # A finished study in a folder we may not write: SQLite would fail to make its WAL files.
        return f"{uri}&immutable=1"
    return uri


def _natural(number: float, distribution: str) -> Any:
    """A param's natural value from its number in the table, as its distribution says."""
    about = json.loads(distribution)
    if about["name"] == "FloatDistribution":
        return float(number)
    if about["name"] == "IntDistribution":
        return int(number)
    if about["name"] == "CategoricalDistribution":
        return about["attributes"]["choices"][int(number)]
    from optuna.distributions import json_to_distribution

    return json_to_distribution(distribution).to_external_repr(number)
