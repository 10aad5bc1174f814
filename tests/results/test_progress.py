"""Cost, pace and utilisation, reckoned from what was recorded when."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta

import pytest
from invented import COUNTS, Invented

from evomerge.report.figures import running as figures
from evomerge.report.tables import duration, left_line
from evomerge.study.record import Marker
from evomerge.study.sessions import KEPT, begin_session, sessions

NIGHT = datetime(2026, 1, 1, 22, 0, tzinfo=UTC)
ITEMS = 2 * COUNTS["search"]


def session(run, start, workers, until=None):
    """Note a session that began so many seconds into the night."""
    began = NIGHT + timedelta(seconds=start)
    entry = {
        "started": began.isoformat(),
        "workers": workers,
        "until": until and (NIGHT + timedelta(seconds=until)).isoformat(),
    }
    run.study.set_note("sessions", [*(run.study.note("sessions") or []), entry])


def trial(run, second, seconds, **facts):
    """A trial recorded so many seconds into the night, after so many seconds of work."""
    finished = NIGHT + timedelta(seconds=second)
    facts = {"seconds": {"materialize": seconds / 4, "score": 3 * seconds / 4}, **facts}
    run.add(run.recipe(), 0.5, finished=finished, **facts)


@pytest.fixture
def two_nights(tmp_path):
    """Two workers for 100 s, busy all the time; a day later one for 40 s, busy half of them."""
    run = Invented(tmp_path / "run", budget=14, workers=2)
    session(run, 0, 2)
    for second in range(20, 120, 20):
        trial(run, second, 20)
        trial(run, second, 20)
    session(run, 86_400, 1)
    trial(run, 86_420, 10)
    trial(run, 86_440, 10)
    return run


def test_time_between_sessions_does_not_count(two_nights):
    found = two_nights.results.running
    assert found["time"] == pytest.approx(140)
    assert [s["time"] for s in found["sessions"]] == [0, pytest.approx(100)]
    assert found["trials"]["time"][-2:] == pytest.approx([120, 140])
    assert found["trials"]["count"][-1] == 12
    assert found["items"]["count"][-1] == 12 * ITEMS


def test_utilisation_is_the_work_over_what_the_workers_had_time_for(two_nights):
    two_nights.study.set_note("concluded", {"winner": "x", "trials": 12})
    busy = two_nights.results.running["busy"]
    assert busy["share"] == pytest.approx((2 * 100 + 20) / (2 * 100 + 40))
    early = [w for t, w in zip(busy["time"], busy["workers"], strict=False) if t < 95]
    assert early == pytest.approx([2.0] * len(early))
    assert min(busy["workers"]) == pytest.approx(0, abs=1e-9)
    width = busy["time"][1]
    assert sum(busy["workers"]) * width == pytest.approx(220)


def test_while_it_runs_what_is_not_recorded_yet_is_not_called_idle(tmp_path):
    run = Invented(tmp_path / "run", workers=4)
    session(run, 0, 4)
    for second in (100, 100, 100, 100, 130):  # three more have been at work for 30 s
        trial(run, second, 100 if second == 100 else 30)
    assert run.results.running["busy"]["share"] == pytest.approx(1.0)


def test_the_time_left_is_that_of_the_budget_at_the_last_sessions_pace(two_nights):
    found = two_nights.results.running
    assert found["rate"] == pytest.approx(1 / 20)
    assert found["left"] == pytest.approx(2 * 20)
    session(two_nights, 86_441, 1, until=86_475)
    trial(two_nights, 86_450, 5)
    trial(two_nights, 86_460, 5)
    assert two_nights.results.running["left"] == 0, "the budget is spent"


def test_a_deadline_ends_it_earlier(tmp_path):
    run = Invented(tmp_path / "run", budget=100)
    now = (datetime.now(UTC) - NIGHT).total_seconds()
    session(run, now - 30, 1, until=now + 40)
    trial(run, now - 20, 10)
    assert run.results.running["left"] is None, "one trial has no pace"
    trial(run, now - 10, 10)
    assert run.results.running["left"] == pytest.approx(40, abs=20)
    session(run, now - 5, 1, until=now - 1)
    trial(run, now - 4, 1)
    trial(run, now - 2, 1)
    left = run.results.running["left"]
    assert left == pytest.approx(96 * 2), "a deadline that has passed says nothing"


def test_cost_tells_what_the_time_went_into(two_nights):
    two_nights.references()
    trial(two_nights, 86_450, 8, pruned=10)
    cost = two_nights.results.running["cost"]
    assert cost["trials"] == {"materialize": pytest.approx(55), "score": pytest.approx(165)}
    assert cost["trials pruned at a rung"]["score"] == pytest.approx(6)
    assert cost["parents and baselines"] == {"score": pytest.approx(2.5)}


def test_studies_that_noted_no_session_have_one(tmp_path):
    run = Invented(tmp_path / "run")
    trial(run, 10, 10)
    trial(run, 20, 10)
    found = run.results.running
    assert (found["time"], len(found["sessions"])) == (pytest.approx(20), 1)
    session(run, 15, 3)
    assert [s["workers"] for s in run.results.running["sessions"]] == [1, 3]


def test_nothing_recorded_yet_is_no_error(tmp_path):
    found = Invented(tmp_path / "run").results.running
    assert (found["busy"], found["left"], found["cost"]) == (None, None, {})


def test_in_flight_is_what_a_living_driver_has_marked(tmp_path):
    run = Invented(tmp_path / "run")
    run.study.mark(Marker(slot=0, digest="d", split="search", ask=7, attempt=2))
    [flying] = run.results.running["in_flight"]
    assert (flying["ask"], flying["attempt"]) == (7, 2)
    assert run.study.driven is True, "this process has the lock"
    assert run.results.status()["in_flight"] == 1
    run.study.close()
    run.study = type(run.study).read(run.study._url, run.study.name)
    assert run.study.driven is False
    assert run.results.running["in_flight"] == []


def test_a_driver_that_was_killed_is_not_taken_for_alive(tmp_path):
    run = Invented(tmp_path / "run")
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    [note] = run.folder.glob("*.driver")
    note.write_text(note.read_text().replace(str(os.getpid()), str(pid)))
    assert run.study.driven is False


def test_the_state_says_what_a_search_is_at_and_how_it_ended(tmp_path):
    run = Invented(tmp_path / "run", budget=2).references()

    def state():
        return run.results.status()["state"]

    assert state() == "running"
    run.search([0.6, 0.8])
    assert state() == "selecting"
    run.study.set_note("test_opened", [{"trials": 2, "winner": "w"}])
    assert state() == "testing"
    # in order, and not in order
    [note] = run.folder.glob("*.driver")
    text = note.read_text()
    note.unlink()
    assert state() == "stopped"
    note.write_text(text.replace(str(os.getpid()), str(2**22 + 1)))  # above Linux's largest pid
    assert state() == "dead"
    note.write_text(text.replace(socket.gethostname(), "elsewhere"))
    assert state() is None
    note.write_text(text)
    os.utime(note, (1, 1))  # a later process of the same number is another one
    assert state() == "dead"
    run.finish()
    assert state() == "done"
    run.study.set_note("stage", {"name": "one", "place": 1, "of": 2, "before": []})
    assert state() == "stage done"


def test_a_session_is_noted_with_its_deadline_and_the_oldest_are_forgotten(tmp_path):
    import time

    run = Invented(tmp_path / "run")
    begin_session(run.study, 3, time.monotonic() + 3600)
    [one] = sessions(run.study)
    assert one.workers == 3
    assert (one.until - one.started).total_seconds() == pytest.approx(3600, abs=2)
    run.study.set_note("sessions", run.study.note("sessions") * KEPT)
    begin_session(run.study, 4, None)
    assert len(sessions(run.study)) == KEPT
    assert sessions(run.study)[-1].until is None


def test_the_figures_show_the_summarys_numbers(two_nights):
    found = two_nights.results.running
    [so_far, expected, budget] = figures.pace(found).data
    assert so_far.y[-1] == 12
    assert expected.y == (12, pytest.approx(14))
    assert expected.x[1] - expected.x[0] == pytest.approx(found["left"] / 60)
    assert budget.y == (14, 14)
    [at_work, there] = figures.busy(found).data
    assert (max(at_work.y), there.y[0]) == (pytest.approx(2), 2)
    bars = figures.cost(found).data
    assert {bar.name: bar.x[0] for bar in bars} == pytest.approx(
        {"materialize": 55 / 60, "score": 165 / 60}
    )


def test_failures_are_drawn_by_reason_the_most_frequent_first():
    figure = figures.failures({"rare": 1, "<b>often</b>": 5, None: 2})
    assert figure.data[0].x == (5, 2, 1)
    labels = [note.text for note in figure.layout.annotations]
    assert labels == ["&lt;b&gt;often&lt;/b&gt;", "no reason recorded", "rare"]


def test_times_are_told_in_words():
    told = [duration(s) for s in (8, 89, 700, 3 * 3600 + 300, 3 * 86_400 + 7200)]
    assert told == ["8 s", "89 s", "12 min", "3 h 05 min", "3 d 2 h"]
    status = {"left": 1200.0, "rate": 0.05}
    assert left_line(status) == "about 20 min, at 3 trials a minute"
    assert left_line({**status, "state": "dead"}).startswith("about 20 min once it goes on, at 3 ")
    assert left_line({"left": None, "rate": None}) == "not known yet"
