"""A SQLite file is read as Optuna reads it, without Optuna."""

from __future__ import annotations

import math
import shutil
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from drivers import open_study, scored

from evomerge.common.errors import InputError
from evomerge.study import sqlite_reader, storage_url
from evomerge.study.finished_trial import FINISHED
from evomerge.study.sqlite_reader import SqliteReader, open_reader
from evomerge.study.storage_url import sqlite_path, sqlite_url
from evomerge.study.study import Study

RUNS = Path(__file__).parents[1] / "recorded" / "runs"
RECORDED = sorted(str(file.relative_to(RUNS)) for file in RUNS.rglob("study.db"))
FIELDS = (
    *("number", "value", "intermediate_values", "params", "user_attrs", "system_attrs"),
    "datetime_complete",
)


def contents(storage):
    """Everything that a study is read by, of a reader or of Optuna's storage."""
    found = {}
    for name in [study.study_name for study in storage.get_all_studies()]:
        study = storage.get_study_id_from_name(name)
        trials = [t for t in storage.get_all_trials(study) if t.state.name in FINISHED]
        found[name] = (
            storage.get_study_user_attrs(study),
            storage.get_study_system_attrs(study),
            storage.get_n_trials(study),
            [(t.state.name, *(getattr(t, field) for field in FIELDS)) for t in trials],
            [list(trial.params) for trial in trials],
        )
    return found


def by_optuna(url):
    storage = optuna.storages.RDBStorage(url, skip_table_creation=True)
    try:
        return contents(optuna.storages.get_storage(storage))
    finally:
        storage.engine.dispose()


def by_us(url):
    reader = open_reader(url)
    try:
        return contents(reader)
    finally:
        reader.close()


@pytest.mark.parametrize("file", RECORDED)
def test_a_recorded_study_is_what_optuna_reads(file, tmp_path):
    shutil.copytree((RUNS / file).parent, tmp_path / "run")
    url = sqlite_url(tmp_path / "run" / "study.db")
    found = by_us(url)
    assert found == by_optuna(url)
    assert any(trials for *_, trials, _names in found.values())


def test_odd_trials_of_two_studies_are_what_optuna_reads(url):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("one", "two"):
        study = optuna.create_study(storage=url, study_name=name)
        study.set_user_attr("text", {"ö": [1, None, "x"]})
        for value in (1.5, math.inf, -math.inf):
            trial = study.ask()
            trial.suggest_float("float", 0, 1)
            trial.suggest_float("log", 1e-3, 1, log=True)
            trial.suggest_int("int", 2, 9)
            trial.suggest_categorical("choice", [None, True, 3, 0.5, name])
            trial.report(math.inf, 3)
            trial.report(0.25, 1)
            study.tell(trial, value)
        pruned = study.ask()
        pruned.report(0.5, 7)
        study.tell(pruned, state=optuna.trial.TrialState.PRUNED)
        study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
        study.ask()  # goes on
    assert by_us(url) == by_optuna(url)


def test_what_the_driver_adds_is_seen_and_nothing_is_read_twice(url):
    with open_study(url) as driver, Study.read(url, "c") as reader:
        assert isinstance(reader._access.storage, SqliteReader)
        driver.add(scored(0.1))
        [first] = reader._trials()
        driver.add(scored(0.2))
        again, second = reader._trials()
        assert again is first
        assert (first.value, second.value) == (0.1, 0.2)
        driver.set_note("seen", [1])
        assert reader.note("seen") == [1]


def test_tables_of_another_revision_are_left_to_optuna(url, monkeypatch):
    open_study(url).close()
    assert open_reader(url) is not None, "is Optuna's revision another one now?"
    monkeypatch.setattr(sqlite_reader, "REVISION", "v9.9.9.a")
    assert open_reader(url) is None
    with Study.read(url, "c") as study:
        assert study.evaluations() == []


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_a_file_that_is_no_study_is_left_to_optuna(tmp_path, content):
    file = tmp_path / "study.db"
    if content is not None:
        file.write_bytes(content)
    assert open_reader(sqlite_url(file)) is None


@pytest.mark.parametrize("table", ["trial_values", "trial_params"])
def test_a_file_is_read_that_was_damaged_since_with_one_clear_message(url, table):
    with open_study(url) as study:
        study.add(scored(0.1))
    with Study.read(url, "c") as reader:
        with sqlite3.connect(sqlite_path(url)) as connection:
            connection.execute(f"DROP TABLE {table}")
        connection.close()
        with pytest.raises(InputError, match=r"cannot be read or written \(no such table"):
            [e.params for e in reader.evaluations()]


def test_a_part_that_was_damaged_is_named_when_it_is_asked_for(url):
    with open_study(url) as study:
        study.add(scored(0.1))
    with sqlite3.connect(sqlite_path(url)) as connection:
        connection.execute("UPDATE trial_system_attributes SET value_json = '\"??\"'")
    connection.close()
    with Study.read(url, "c") as reader:
        (found,) = reader.evaluations()
        assert (found.value, found.digest) == (0.1, "d")
        with pytest.raises(InputError, match=r"trial 0 .* damaged \(scores: chunk .* copy"):
            len(found.scores)


def test_parts_are_read_where_the_study_was_closed_meanwhile_and_of_all_trials(url):
    count = 3 * sqlite_reader.CHUNK
    with open_study(url) as study:
        for place in range(count):
            genes = {"weight": place / count, "density": 0.5}
            study.add(scored(place / count, str(place), params=genes, recipe={"place": place}))
    with Study.read(url, "c") as reader:
        found = reader.evaluations()
    assert [e.recipe["place"] for e in found] == list(range(count))
    assert [e.params["weight"] for e in reversed(found)] == [e.value for e in reversed(found)]
    assert found[0].scores["t"].tolist() == [1, 1, 1]


def test_times_are_right_where_the_clock_is_not_utc(url, monkeypatch):
    before = datetime.now(UTC)
    try:
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        with open_study(url) as study:
            study.add(scored(0.1))
        after = datetime.now(UTC)
        with Study.read(url, "c") as reader:
            (found,) = reader.evaluations()
        assert before <= found.finished <= after
        assert by_us(url) == by_optuna(url)
    finally:
        monkeypatch.undo()
        time.tzset()


PATHS = ["/runs/study.db", "a b/ö.db", "/x%20y/#?.db", "/a+b/c&d=e.db", "/tmp/{x}/'y'.db"]


@pytest.mark.parametrize("path", PATHS)
def test_urls_are_sqlalchemys(path):
    url = sqlalchemy.URL.create("sqlite", database=path).render_as_string()
    assert sqlite_url(Path(path)) == url
    assert sqlite_path(url) == Path(sqlalchemy.make_url(url).database) == Path(path)


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "postgresql://me:secret@host/db", "sqlite:///x.db?a=1"],
)
def test_other_urls_are_sqlalchemys_business(url):
    known = sqlalchemy.make_url(url)
    plain = known.get_backend_name() == "sqlite" and known.database not in (None, ":memory:")
    assert sqlite_path(url) == (Path(known.database) if plain else None)
    assert "secret" not in storage_url.describe(url)


def test_reading_a_study_imports_neither_optuna_nor_sqlalchemy(url):
    with open_study(url) as study:
        study.add(scored(0.1))
    code = (
        "import sys; from evomerge.study.study import Study\n"
        f"study = Study.read({url!r}, 'c'); assert study.evaluations()\n"
        "print(sorted({'optuna', 'sqlalchemy', 'alembic', 'tenacity'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
