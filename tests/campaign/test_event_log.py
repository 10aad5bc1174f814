"""What happened to workers and machines, as the study keeps it and `status` says it."""

from __future__ import annotations

import json

from executors import TwoSlots
from rich.console import Console
from running import evaluations, run
from silent import Silent

from evomerge.campaign.event_log import LATEST, LONGEST, REUSE_EVERY, EventLog
from evomerge.report.tables import status_table
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run
from evomerge.workers.job import Event, Outcome


class Notes:
    """A study's notes."""

    def __init__(self):
        self.notes = {}

    def note(self, key):
        return json.loads(json.dumps(self.notes.get(key)))

    def set_note(self, key, value):
        assert len(json.dumps(value)) < 60_000
        self.notes[key] = value


def test_events_are_counted_for_ever_and_the_latest_kept_in_words():
    study = Notes()
    for driver in range(3):
        logbook = EventLog(study, Silent())
        for number in range(100):
            logbook.write([Event("workers died", f"{driver}.{number} " + "x" * 1000)], 2)
            logbook.write([Event("workers joined")], 3)
            logbook.write([], 9)
    events = study.notes["events"]
    assert events["counts"] == {"workers died": 300, "workers joined": 300}
    assert events["workers"] == 3
    assert len(events["latest"]) == LATEST
    assert events["latest"][-1][1].startswith("2.99 ")
    assert len(events["latest"][-1][1]) == LONGEST


class Unlucky(TwoSlots):
    """Its node has a full disk now and then; its workers die."""

    def __init__(self, spec):
        super().__init__(spec)
        self.waits, self.events = 0, []

    def wait(self):
        self.waits += 1
        if self.waits % 3:
            return super().wait()
        if self.waits % 2:
            return None
        self.events.append(Event("nodes left alone", "node a/b is quarantined for 5 s: [Errno 28]"))
        return Outcome(self.jobs.pop(0), reason="[Errno 28]", retryable=True, machine_fault=True)

    def drain_events(self):
        events, self.events = self.events, []
        return events


def test_a_machines_faults_are_told_and_cost_no_candidate_an_attempt(tiny_folder, monkeypatch):
    monkeypatch.setattr("evomerge.campaign.open.build_executor", Unlucky)
    out = run(tiny_folder)
    trials = [e for e in evaluations(out) if e.optimizers_own]
    assert {(e.attempt, e.failed) for e in trials} == {(1, False)}
    assert sorted(e.ask for e in trials) == list(range(12))
    status = Results(open_run(out)[1]).status()
    count = status["events"]["counts"]["nodes left alone"]
    assert count >= 3
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(status_table(status))
    text = console.export_text()
    assert f"1 at work; nodes left alone: {count}" in text
    assert "node a/b is quarantined for 5 s: [Errno 28]" in text


def test_what_workers_need_not_merge_again_is_counted_over_all_sessions():
    study = Notes()
    reuse = {"tensors": 10, "tensors kept": 4, "parameters": 1000, "parameters kept": 250}
    for _ in range(2):
        log = EventLog(study, Silent())
        for _ in range(REUSE_EVERY + 1):
            log.count_reuse(reuse)
            log.count_reuse({})  # a later rung's, of a recipe that was there
        assert study.notes["merging"]["candidates"] % (REUSE_EVERY + 1) in (REUSE_EVERY, 0)
        log.save_reuse()
    count = 2 * (REUSE_EVERY + 1)
    counts = {name: value * count for name, value in reuse.items()}
    assert study.notes["merging"] == {"candidates": count, **counts}


def test_status_says_what_of_the_candidates_a_worker_had(tiny_folder):
    path = "space.path={kind: layer_swap, outer: base, inner: math}"
    out = run(tiny_folder, overrides=["space.weights=null", path, "budget.trials=4"])
    status = Results(open_run(out)[1]).status()
    found = status["merging"]
    assert found["candidates"] == sum(bool(e.seconds) for e in evaluations(out))
    assert 0 < found["tensors kept"] < found["tensors"]
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(status_table(status))
    share = found["parameters kept"] / found["parameters"]
    text = " ".join(console.export_text().split())
    assert f"not merged again │ {share:.0%} of the weights ({found['tensors kept']} of" in text
