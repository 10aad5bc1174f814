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
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from evomerge.study.codec import SMALL
from evomerge.study.finished_trial import FINISHED, FinishedTrial, State, local
from evomerge.study.storage_url import sqlite_path
from evomerge.study.stored import StoredFacts

REVISION = "v3.2.0.a"
"""The revision of Optuna's tables that is read here."""
BUSY_SECONDS = 30
"""Seconds that SQLite waits for another process's write."""
CHUNK = 64
"""Trials whose parts are read together where neighbours are wanted one after the other."""
NEAR = 8
"""Trials that are neighbours."""
SHORT = 64
"""Characters of an optimizer's state that is read with a trial's small facts."""
_NOT_FINITE = {"NAN": math.nan, "INF_POS": math.inf, "INF_NEG": -math.inf}
_NONE: Mapping[str, Any] = {}
_MEASURED = State.COMPLETE.name
_FIRST = (
    "SELECT t.trial_id, t.number, t.state, t.datetime_complete, v.value, v.value_type "
    "FROM trials t LEFT JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0 "
    "WHERE t.study_id = ? AND t.trial_id > ? ORDER BY t.trial_id"
)
_PLAIN = (
    "SELECT trial_id, group_concat("
    """CASE WHEN key IN ({}) THEN '"' || key || '":' || value_json """
    """WHEN key = 'optimizer_state' THEN '"optimizer_state":' || """
    f"CASE WHEN length(value_json) < {SHORT} THEN value_json ELSE 'null' END END) "
    "FROM trial_user_attributes WHERE trial_id IN "
    "(SELECT trial_id FROM trials WHERE study_id = ? AND trial_id > ?) GROUP BY trial_id"
).replace("({})", f"({', '.join('?' * len(SMALL))})")
_RARE = (
    "SELECT a.trial_id, a.key, "
    "CASE a.key WHEN 'descent:0' THEN 'null' ELSE a.value_json END FROM trial_system_attributes a "
    "JOIN trials t ON t.trial_id = a.trial_id WHERE t.study_id = ? AND a.trial_id > ? "
    "AND (a.key = 'descent:0' OR a.key >= 'constraints:' AND a.key < 'constraints;' "
    "OR a.key >= 'plain/' AND a.key < 'plain0')"
)
_LAST_STEPS = (
    "SELECT i.trial_id, i.intermediate_value, i.intermediate_value_type "
    "FROM trials t JOIN trial_intermediate_values i ON i.trial_id = t.trial_id "
    "WHERE t.study_id = ? AND t.trial_id > ? AND t.state = 'PRUNED' ORDER BY i.trial_id, i.step"
)
_PARAMS = (
    "SELECT trial_id, param_name, param_value, distribution_json FROM trial_params "
    "WHERE trial_id BETWEEN ? AND ? ORDER BY param_id"
)
_USER = (
    "SELECT trial_id, value_json FROM trial_user_attributes "
    "WHERE trial_id BETWEEN ? AND ? AND key = ?"
)
_SYSTEM = (
    "SELECT trial_id, key, value_json FROM trial_system_attributes "
    "WHERE trial_id BETWEEN ? AND ? AND key >= ? AND key < ?"
)


@dataclass(frozen=True)
class Named:
    """A study of the file, by name."""

    study_name: str


class SqliteReader:
    """The methods of Optuna's storage by which a study is read, over one read-only connection."""

    def __init__(self, path: Path) -> None:
        """Open the file at an absolute path.

        Raises:
            sqlite3.Error: it cannot be read, or is no database.
        """
        self._path = path
        self._connection: sqlite3.Connection | None = _connect(path)
        self._alone = threading.Lock()
        self._trials: dict[int, FinishedTrial] = {}  # by Optuna's ids, of all studies together
        self._chunks: dict[tuple[str, str], tuple[range, dict[int, Any]]] = {}

    def close(self) -> None:
        """Close the file; parts of trials that are read later open it for that moment."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def revisions(self) -> list[str]:
        """List the revisions of Optuna's tables that the file names: one, if it is Optuna's."""
        with self._snapshot() as rows:
            return [str(found) for (found,) in rows("SELECT version_num FROM alembic_version")]

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
                        datetime_complete=moment and local(_moment(moment)),
                        **{name: part[key] for name, part in parts.items()},
                    )
        return [self._trials[key] for key in found]

    def facts_after(self, study_id: int, after: int) -> list[StoredFacts]:
        """Read the facts of the finished trials with ids above `after`, in their order.

        Those of a study's trial that are large or seldom needed are left to `user`, `packed` and
        `params`.
        """
        with self._snapshot() as rows:
            found = rows(_FIRST, study_id, after).fetchall()
            # 1. plain facts: of each trial the text of one JSON object, and all in one text
            texts = dict(rows(_PLAIN, *SMALL, study_id, after).fetchall())
            whole = ",".join(f"{{{text or ''}}}" for text in texts.values())
            plain = dict(zip(texts, json.loads(f"[{whole}]"), strict=True))
            # 2. what few trials have: long plain facts, broken constraints, values of pruned ones
            rare: dict[int, dict[str, Any]] = defaultdict(dict)
            for key, name, text in rows(_RARE, study_id, after):
                rare[key][name] = json.loads(text)
            pruned = dict[int, float]()
            for key, number, kind in rows(_LAST_STEPS, study_id, after):
                pruned[key] = _NOT_FINITE.get(kind, number)
        return [
            StoredFacts(
                key=key,
                number=number,
                value=pruned.get(key) if state != _MEASURED else _NOT_FINITE.get(kind, value),
                plain=plain.get(key, _NONE),
                rare=rare.get(key, _NONE),
                finished=moment and _moment(moment),
            )
            for key, number, state, moment, value, kind in found
            if state in FINISHED
        ]

    def user(self, key: int, name: str) -> Any:
        """Read a user attribute of a trial by its id; None where there is none."""
        found = self._chunk("user", name, key).get(key)
        return None if found is None else json.loads(found[name])

    def packed(self, key: int, name: str) -> Mapping[str, Any]:
        """Read the system attributes `name:0`, `name:1`, … of a trial by its id."""
        found = self._chunk("system", name, key).get(key, _NONE)
        return {place: json.loads(text) for place, text in found.items()}

    def params(self, key: int) -> dict[str, Any]:
        """Read the params of a trial by its id."""
        found = self._chunk("params", "", key).get(key, _NONE)
        return {name: _natural(*numbers) for name, numbers in found.items()}

    def _chunk(self, kind: str, name: str, key: int) -> dict[int, dict[str, Any]]:
        """Trial's id → names → texts, of the trials around an id; kept until others are wanted."""
        known, content = self._chunks.get((kind, name), (range(0), {}))
        if key in known:
            return content
        # one trial alone, or its neighbours too where the last one was a neighbour
        near = known.start - NEAR <= key < known.stop + NEAR
        start = key - key % CHUNK if near else key
        found: dict[int, dict[str, Any]] = defaultdict(dict)
        with self._snapshot() as rows:
            [(latest,)] = rows("SELECT MAX(trial_id) FROM trials")
            span = start, min(start + CHUNK - 1, latest or 0) if near else key
            if kind == "params":
                for one, param, number, distribution in rows(_PARAMS, *span):
                    found[one][param] = number, distribution
            elif kind == "user":
                for one, text in rows(_USER, *span, name):
                    found[one][name] = text
            else:
                for one, place, text in rows(_SYSTEM, *span, f"{name}:", f"{name};"):
                    found[one][place] = text
        self._chunks[kind, name] = range(span[0], span[1] + 1), found
        return found

    def _refuse(self, *_: Any, **__: Any) -> Any:
        """Refuse to write, in SQLite's words."""
        raise sqlite3.OperationalError("attempt to write a readonly database")

    set_study_user_attr = set_study_system_attr = _refuse
    set_study_system_attrs = create_new_trial = _refuse

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
        with self._alone, self._opened() as connection:
            connection.execute("BEGIN")
            try:
                yield lambda query, *given: connection.execute(query, given)
            finally:
                connection.rollback()

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The connection, or one for this moment once the file is closed."""
        if self._connection is not None:
            yield self._connection
            return
        with closing(_connect(self._path)) as connection:
            yield connection


def open_reader(storage: str) -> SqliteReader | None:
    """Open the SQLite file behind a URL for reading; None where Optuna has to do it."""
    path = None if "?" in storage else sqlite_path(storage)
    if path is None or not path.is_file():
        return None
    with suppress(sqlite3.Error):
        reader = SqliteReader(path.absolute())
        try:
            if reader.revisions() == [REVISION]:
                return reader
        except BaseException:
            reader.close()
            raise
        reader.close()
    return None


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        read_only_uri(path),
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def read_only_uri(path: Path) -> str:
    """The URI by which SQLite opens a file, an absolute path, and changes nothing."""
    uri = f"file:{urllib.parse.quote(str(path))}?mode=ro"
    if not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists():
        # A finished study in a folder we may not write: SQLite would fail to make its WAL files.
        return f"{uri}&immutable=1"
    return uri


def _natural(number: float, distribution: str) -> Any:
    """A param's natural value from its number in the table, as its distribution says."""
    about = _about(distribution)
    if about["name"] == "FloatDistribution":
        return float(number)
    if about["name"] == "IntDistribution":
        return int(number)
    if about["name"] == "CategoricalDistribution":
        return about["attributes"]["choices"][int(number)]
    from optuna.distributions import json_to_distribution

    return json_to_distribution(distribution).to_external_repr(number)


@lru_cache(maxsize=4096)
def _about(distribution: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(distribution)
    return found


def _moment(text: str) -> datetime:
    """A moment of the tables, which hold UTC without a zone."""
    return datetime.fromisoformat(f"{text}+00:00")
