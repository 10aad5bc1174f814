"""Optuna's storage, which adds a finished trial by one statement a table.

Optuna's own adds every param and attribute by itself, two or three statements for each: 30 ms for a
trial of 28 genes, of which Optuna's tables need less than one. The rows are the same, one for one.
Like `sqlite_reader` this file knows Optuna's tables, and only those of `REVISION`: tables of any
other revision are left to Optuna.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Any

import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from typing_extensions import override

from evomerge.study.sqlite_reader import REVISION

_BEYOND = {math.inf: "INF_POS", -math.inf: "INF_NEG"}


def _table(name: str, *columns: str) -> sqlalchemy.TableClause:
    return sqlalchemy.table(name, *map(sqlalchemy.column, columns))


STUDIES = _table("studies", "study_id")
TRIALS = sqlalchemy.Table(
    "trials",
    sqlalchemy.MetaData(),
    sqlalchemy.Column("trial_id", sqlalchemy.Integer, primary_key=True),
    *(sqlalchemy.Column(name, sqlalchemy.Integer) for name in ("number", "study_id")),
    sqlalchemy.Column("state", sqlalchemy.Enum(TrialState)),
    *(
        sqlalchemy.Column(name, sqlalchemy.DateTime)
        for name in ("datetime_start", "datetime_complete")
    ),
)
"""With types: its key is given by the database, its state and times are written by SQLAlchemy."""
VALUES = _table("trial_values", "trial_id", "objective", "value", "value_type")
PARAMS = _table("trial_params", "trial_id", "param_name", "param_value", "distribution_json")
USER = _table("trial_user_attributes", "trial_id", "key", "value_json")
SYSTEM = _table("trial_system_attributes", "trial_id", "key", "value_json")
STEPS = _table(
    "trial_intermediate_values",
    *("trial_id", "step", "intermediate_value", "intermediate_value_type"),
)
FACTS = _table("study_system_attributes", "study_id", "key", "value_json")


class AtOnceStorage(RDBStorage):
    """Optuna's storage; trials that are finished when they are added, and study attributes that
    are written together, take one transaction of few statements.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        """Open the storage as Optuna does."""
        super().__init__(*given, **options)
        self._checked: dict[tuple[int, str], BaseDistribution] = {}

    @cached_property
    def _known(self) -> bool:
        """True if the tables are those that this class knows."""
        return bool(self.get_current_version() == REVISION)

    @override
    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if template_trial is None or not template_trial.state.is_finished() or not self._known:
            return int(super().create_new_trial(study_id, template_trial))
        self._check_params(study_id, template_trial.distributions)
        with self.engine.begin() as connection:
            return self._insert(connection, study_id, template_trial)

    @override
    def get_trial_number_from_id(self, trial_id: int) -> int:
        query = sqlalchemy.select(TRIALS.c.number).where(TRIALS.c.trial_id == trial_id)
        with self.engine.connect() as connection:
            found = connection.execute(query).scalar()
        return super().get_trial_number_from_id(trial_id) if found is None else int(found)

    @override
    def get_n_trials(
        self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None
    ) -> int:
        if state is not None:
            return int(super().get_n_trials(study_id, state))
        with self.engine.connect() as connection:
            query = sqlalchemy.select(sqlalchemy.func.count())
            return int(connection.execute(query.where(TRIALS.c.study_id == study_id)).scalar_one())

    def set_study_system_attrs(self, study_id: int, attributes: Mapping[str, Any]) -> None:
        """Set system attributes of a study in one transaction; others stay as they are."""
        if not self._known:
            for key, value in attributes.items():
                self.set_study_system_attr(study_id, key, value)
            return
        with self.engine.begin() as connection:
            for key, value in attributes.items():
                there = (FACTS.c.study_id == study_id) & (FACTS.c.key == key)
                text = json.dumps(value)
                updated = sqlalchemy.update(FACTS).where(there).values(value_json=text)
                if not connection.execute(updated).rowcount:
                    row = {"study_id": study_id, "key": key, "value_json": text}
                    connection.execute(sqlalchemy.insert(FACTS), row)

    def _insert(self, connection: sqlalchemy.Connection, study: int, trial: FrozenTrial) -> int:
        """Insert the rows of a trial, in Optuna's order of tables; return its id."""
        # 1. the number is the next after the trial before it: no other may be added meanwhile
        if self.engine.name != "sqlite":  # which has one writer at a time, from the first insert on
            locked = sqlalchemy.select(STUDIES).where(STUDIES.c.study_id == study)
            connection.execute(locked.with_for_update())
        row = {
            "study_id": study,
            "state": trial.state,
            "datetime_start": _utc(trial.datetime_start),
            "datetime_complete": _utc(trial.datetime_complete),
        }
        inserted = connection.execute(sqlalchemy.insert(TRIALS), row).inserted_primary_key
        assert inserted is not None
        key = int(inserted[0])
        number, place = _next_number(connection, study, key), TRIALS.c.trial_id == key
        connection.execute(sqlalchemy.update(TRIALS).where(place).values(number=number))
        # 2. all else, each table's rows by one statement
        for table, rows in _rows(trial).items():
            if rows:
                connection.execute(
                    sqlalchemy.insert(table), [{"trial_id": key, **row} for row in rows]
                )
        return key

    def _check_params(self, study: int, distributions: Mapping[str, BaseDistribution]) -> None:
        """Check that params have the distributions of the study's earlier ones, as Optuna does.

        Raises:
            ValueError: one has not.
        """
        new = [name for name in distributions if (study, name) not in self._checked]
        for name in new:
            query = (
                sqlalchemy.select(PARAMS.c.distribution_json)
                .join(TRIALS, TRIALS.c.trial_id == PARAMS.c.trial_id)
                .where((TRIALS.c.study_id == study) & (PARAMS.c.param_name == name))
                .limit(1)
            )
            with self.engine.connect() as connection:
                found = connection.execute(query).scalar()
            earlier = json_to_distribution(found) if found else distributions[name]
            self._checked[study, name] = earlier
        for name, distribution in distributions.items():
            if self._checked[study, name] is not distribution:
                check_distribution_compatibility(self._checked[study, name], distribution)


def _rows(trial: FrozenTrial) -> dict[sqlalchemy.TableClause, list[dict[str, Any]]]:
    """Table → the trial's rows, without its id."""
    return {
        VALUES: [
            {"objective": place, **dict(zip(("value", "value_type"), _stored(value), strict=True))}
            for place, value in enumerate(trial.values or ())
        ],
        PARAMS: [
            {
                "param_name": name,
                "param_value": trial.distributions[name].to_internal_repr(value),
                "distribution_json": _as_json(trial.distributions[name]),
            }
            for name, value in trial.params.items()
        ],
        USER: [{"key": k, "value_json": json.dumps(v)} for k, v in trial.user_attrs.items()],
        SYSTEM: [{"key": k, "value_json": json.dumps(v)} for k, v in trial.system_attrs.items()],
        STEPS: [
            {
                "step": step,
                **dict(
                    zip(
                        ("intermediate_value", "intermediate_value_type"),
                        (None, "NAN") if math.isnan(value) else _stored(value),
                        strict=True,
                    )
                ),
            }
            for step, value in trial.intermediate_values.items()
        ],
    }


def _stored(value: float) -> tuple[float | None, str]:
    """A number as the tables hold it: its value, if it is finite, and its kind."""
    kind = _BEYOND.get(value)
    return (float(value), "FINITE") if kind is None else (None, kind)


@lru_cache(maxsize=4096)
def _as_json(distribution: BaseDistribution) -> str:
    return str(distribution_to_json(distribution))


def _utc(moment: datetime | None) -> datetime | None:
    """Optuna's local time, which has no zone, as its tables hold it: in UTC, without a zone."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


def _next_number(connection: sqlalchemy.Connection, study: int, key: int) -> int:
    """The number of the study's trial with an id: how many there are before it.

    Optuna counts them, which takes longer with each; the last one's number says it, too.
    """
    before = (TRIALS.c.study_id == study) & (TRIALS.c.trial_id < key)
    last = sqlalchemy.select(TRIALS.c.number).where(before).order_by(TRIALS.c.trial_id.desc())
    found = connection.execute(last.limit(1)).scalar()
    return 0 if found is None else int(found) + 1
