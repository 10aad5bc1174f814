"""A study on a real server: it goes away and comes back, and drivers contend for it."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import sqlalchemy
from drivers import open_study, refusal, scored

from evomerge.common.errors import EvomergeError, InputError
from evomerge.study.access import OutagePolicy
from evomerge.study.record import Marker
from evomerge.study.storage import close, open_for_writing
from evomerge.study.storage_url import describe
from evomerge.study.study import Study

pytestmark = pytest.mark.slow


@pytest.fixture(params=["postgresql", "mysql"])
def server(request, servers):
    """One of each kind. It may be killed, if it is started again."""
    return servers.of(request.param)


@pytest.fixture
def url(server):
    return server.new_database()


@pytest.fixture(autouse=True)
def _refuse_sooner(monkeypatch):
    monkeypatch.setattr("evomerge.study.lock.GRACE_SECONDS", 0.5)


def digests(url):
    with Study.read(url, "c") as study:
        return [evaluation.digest for evaluation in study.evaluations()]


def cut_connections(server, url):
    """End every connection to a study's database, as an administrator would."""
    if server.backend == "postgresql":
        database = sqlalchemy.make_url(url).database
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        )
        return
    for (number,) in server.execute(
        "SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND command "
        "NOT IN ('Daemon', 'Killed')"
    ):
        server.execute(f"KILL {number}")


# Writing beside the driver


def test_attributes_are_written_beside_the_driver_without_its_lock(url):
    """As optuna-dashboard's figures are."""
    with open_study(url) as study:
        study.add(scored(0.1))
        rdb = open_for_writing(url)
        try:
            beside = optuna.load_study(study_name="c", storage=rdb)
            rdb.set_study_system_attr(beside._study_id, "figure", "drawn")
        finally:
            close(rdb)
        study.add(scored(0.2))
    found = optuna.load_study(study_name="c", storage=url)
    assert found._storage.get_study_system_attrs(found._study_id)["figure"] == "drawn"
    assert len(digests(url)) == 2


# Outages


def test_what_is_known_while_the_server_is_away_is_recorded_in_order_when_it_is_back(server, url):
    told = []

    def say(message):
        told.append(message)
        if "is away" in message:
            server.start()

    with open_study(url, outages=OutagePolicy(60, say)) as study:
        study.add(scored(0.1, "before"))
        server.kill()
        for digest in ("first", "second"):
            study.mark(Marker(slot=0, digest=digest, split="search"))
            study.add(scored(0.2, digest))
        study.set_note("concluded", {"trials": 3})
        assert digests(url) == ["before", "first", "second"]
        assert [e.digest for e in study.evaluations()] == ["before", "first", "second"]
        assert "another evomerge search" in refusal(url), "the lock must have been taken again"
    away, returned = told
    assert away.startswith(f"{describe(url)} is away (")
    assert away.endswith("waiting for it, up to 1 min")
    assert "connect" in away.lower()
    assert returned.startswith(f"{describe(url)} is back after ")


@pytest.mark.parametrize("committed", [True, False])
def test_a_trial_is_recorded_once_whether_or_not_a_cut_off_commit_came_through(
    server, url, monkeypatch, committed
):
    with open_study(url, outages=OutagePolicy(60)) as study:
        study.add(scored(0.1, "twin"))
        dialect = study._access.engine.dialect
        commit = dialect.do_commit

        def cut_off(connection):
            monkeypatch.undo()
            if committed:
                commit(connection)
            cut_connections(server, url)
            connection.cursor().execute("SELECT 1")

        monkeypatch.setattr(dialect, "do_commit", cut_off)
        assert study.add(scored(0.1, "twin")).number == 1
        assert study.add(scored(0.3, "last")).number == 2
    assert digests(url) == ["twin", "twin", "last"]


def test_connections_that_an_administrator_ends_are_made_anew_without_a_word(server, url):
    told = []
    with open_study(url, outages=OutagePolicy(60, told.append)) as study:
        for digest in ("a", "b"):
            cut_connections(server, url)
            study.add(scored(0.1, digest))
        assert "another evomerge search" in refusal(url)
    assert digests(url) == ["a", "b"]
    assert told == []


def test_an_outage_longer_than_the_patience_ends_the_search_and_loses_nothing_recorded(server, url):
    with open_study(url, outages=OutagePolicy(0.5)) as study:
        study.add(scored(0.1, "before"))
        server.kill()
        try:
            with pytest.raises(EvomergeError, match=r"is away .*nothing recorded is lost"):
                study.add(scored(0.2, "lost"))
            started = time.monotonic()
            with pytest.raises(EvomergeError, match="is away"):
                study.mark(Marker(slot=0, digest="x", split="search"))
            assert time.monotonic() - started < 0.1, "the next ones do not wait again"
        finally:
            server.start()
        with pytest.raises(EvomergeError, match="is away"):
            study.add(scored(0.2, "late"))
    with open_study(url) as study:
        study.add(scored(0.3, "after"))
    assert digests(url) == ["before", "after"]


def test_ctrl_c_ends_the_waiting(server, url):
    def interrupt(_message):
        raise KeyboardInterrupt

    with open_study(url, outages=OutagePolicy(60, interrupt)) as study:
        server.kill()
        try:
            with pytest.raises(KeyboardInterrupt):
                study.add(scored(0.1))
            with pytest.raises(EvomergeError, match="was away when the search was stopped"):
                study.mark(Marker(slot=0, digest="x", split="search"))
        finally:
            server.start()


def test_who_is_in_a_hurry_does_not_wait(server, url):
    with open_study(url, outages=OutagePolicy(60)) as study:
        server.kill()
        try:
            study.stop_waiting()
            started = time.monotonic()
            with pytest.raises(EvomergeError, match="is away"):
                study.add(scored(0.1))
            assert time.monotonic() - started < 5
        finally:
            server.start()


def test_a_server_that_is_away_at_the_start_is_said_at_once(server, url):
    server.kill()
    try:
        text = refusal(url, outages=OutagePolicy(60))
        with pytest.raises(InputError, match="cannot be read or written"):
            Study.read(url, "c")
    finally:
        server.start()
    assert text.startswith(f"{describe(url)}: the study cannot be read or written (")
    assert "\n" not in text


# Drivers


@pytest.mark.parametrize("still_there", [True, False])
def test_a_driver_that_took_over_in_between_is_noticed(server, url, still_there):
    with open_study(url, outages=OutagePolicy(60)) as first:
        first.add(scored(0.1, "first"))
        cut_connections(server, url)
        second = open_study(url)
        second.add(scored(0.2, "second"))
        if not still_there:
            second.close()
        with pytest.raises(EvomergeError, match=r"\(pid \d+, host .*\) took over while"):
            first.add(scored(0.3, "stale"))
        with pytest.raises(EvomergeError, match="took over"):
            first.mark(Marker(slot=0, digest="stale", split="search"))
        if still_there:
            second.add(scored(0.4, "third"))
            second.close()
    assert digests(url) == ["first", "second", *(["third"] if still_there else [])]


def test_studies_in_one_database_have_a_driver_each(url):
    open_other = {"identity": {}, "campaign": {}, "genes": {}}
    with open_study(url) as study, Study.create_or_resume(url, "other", **open_other) as other:
        study.add(scored(0.1))
        other.add(scored(0.2, role="parent", name="math"))
        assert "another evomerge search" in refusal(url)


def test_drivers_of_several_studies_may_make_the_tables_at_the_same_time(url):
    together = threading.Barrier(4)

    def drive(name):
        together.wait()
        Study.create_or_resume(url, name, identity={}, campaign={}, genes={}).close()

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(drive, "abcd")) == [None] * 4
    assert set(optuna.get_all_study_names(url)) == set("abcd")


def test_names_that_the_database_does_not_tell_apart_are_refused(servers):
    url = servers.of("mysql").new_database()
    open_study(url).close()
    with pytest.raises(InputError, match=r"has a study 'c', which .* does not tell from 'C'"):
        Study.create_or_resume(url, "C", identity={}, campaign={}, genes={})


def test_a_database_that_has_no_such_lock_is_refused():
    text = refusal("mssql+pyodbc://user:secret@host/db")
    assert "can hold no search" in text
    assert "secret" not in text
    assert "can hold no search" in refusal("sqlite://")


def test_what_a_server_needs_installed_is_said():
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from evomerge.study.study import Study\n"
        "try:\n    Study.read('postgresql+psycopg://host/db', 'c')\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("InputError postgresql+psycopg://host/db: the database's Python")
    assert "pip install 'evomerge[postgresql]'" in run.stdout
