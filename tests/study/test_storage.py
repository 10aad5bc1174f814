"""A study in a SQLite file: how it is kept, and what can be wrong with files."""

import os

import numpy as np
import pytest
import sqlalchemy
from drivers import open_study, refusal, scored

from evomerge.common.errors import InputError
from evomerge.study.storage_url import sqlite_url
from evomerge.study.study import Study


def test_sqlite_is_in_wal_mode_and_syncs_normally(url, tmp_path):
    with open_study(url) as study, study._access.engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(sqlalchemy.text("PRAGMA synchronous")).scalar() == 1
        assert connection.execute(sqlalchemy.text("PRAGMA busy_timeout")).scalar() == 30_000


def test_odd_characters_in_the_path_are_no_trouble(tmp_path):
    path = tmp_path / "a b{c}#d?e%20" / "study.db"
    with open_study(sqlite_url(path)) as study:
        study.add(scored(0.1))
    assert path.is_file()
    with Study.read(sqlite_url(path), "c") as study:
        assert len(study.evaluations()) == 1


def test_a_reader_cannot_write(url):
    open_study(url).close()
    with Study.read(url, "c") as reader, pytest.raises(InputError, match="readonly"):
        reader.set_note("test opened", True)


@pytest.mark.parametrize(
    ("pragma", "reason"), [("max_page_count=1", "full"), ("query_only=ON", "readonly")]
)
def test_a_full_or_read_only_disk_is_one_clear_message(url, tmp_path, monkeypatch, pragma, reason):
    monkeypatch.setattr("optuna.storages._rdb.storage.time.sleep", lambda _: None)
    with open_study(url) as study:
        study.add(scored(0.1))
        sqlalchemy.event.listen(
            study._access.engine, "begin", lambda c: c.exec_driver_sql(f"PRAGMA {pragma}")
        )
        with pytest.raises(InputError, match=reason) as caught:
            study.add(scored(0.2, scores={"t": np.random.default_rng(0).random(50_000)}))
        assert str(tmp_path / "study.db") in str(caught.value)
    with Study.read(url, "c") as study:
        assert [evaluation.value for evaluation in study.evaluations()] == [0.1]


def test_a_folder_that_cannot_be_written_is_one_clear_message(tmp_path):
    (tmp_path / "file").touch()
    text = refusal(sqlite_url(tmp_path / "file" / "study.db"))
    assert text.startswith(str(tmp_path / "file" / "study.db"))
    assert "cannot be written" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission_is_one_clear_message(tmp_path):
    tmp_path.chmod(0o555)
    assert "Permission denied" in refusal(sqlite_url(tmp_path / "study.db"))
    tmp_path.chmod(0o755)


def test_a_finished_study_in_a_folder_without_permission_is_readable(url, tmp_path, monkeypatch):
    with open_study(url) as study:
        study.add(scored(0.1))
    (tmp_path / "study.db").chmod(0o444)
    tmp_path.chmod(0o555)
    access = os.access  # root may write all the same
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and access(path, mode))
    try:
        with Study.read(url, "c") as study:
            assert len(study.evaluations()) == 1
        assert not (tmp_path / "study.db-shm").exists()
    finally:
        tmp_path.chmod(0o755)


def test_a_file_that_is_no_database_is_left_alone(url, tmp_path):
    (tmp_path / "study.db").write_text("not a database, " * 500)
    assert "file is not a database" in refusal(url)
    assert (tmp_path / "study.db").read_text() == "not a database, " * 500


def test_reading_what_is_not_there_says_so_and_makes_nothing(url, tmp_path):
    with pytest.raises(InputError, match="no study here"):
        Study.read(url, "c")
    assert list(tmp_path.iterdir()) == []
    open_study(url).close()
    with pytest.raises(InputError, match="no study 'x'; found 'c'"):
        Study.read(url, "x")


def test_reading_a_study_whose_tables_are_still_being_made_says_to_look_again(url, tmp_path):
    (tmp_path / "study.db").touch()
    with pytest.raises(InputError, match="only just begun, look again"):
        Study.read(url, "c")
    assert (tmp_path / "study.db").stat().st_size == 0
