"""`evomerge retry`: failed evaluations are made again by hand."""

from __future__ import annotations

from typing import ClassVar

import pytest
import tiny
from command_line import evomerge
from running import evaluations, facts, run

from evomerge.workers.job import Outcome
from evomerge.workers.local import LocalExecutor


class Failing(LocalExecutor):
    """Fails some of the jobs, by their place, for one reason or another."""

    reasons: ClassVar[dict[int, str]] = {}
    done = 0

    def wait(self):
        Failing.done += 1
        reason = self.reasons.get(Failing.done)
        if reason is None:
            return super().wait()
        job, self._job = self._job, None
        return Outcome(job, reason=reason)


@pytest.fixture
def failed(tiny_folder, monkeypatch):
    """A finished run of which four evaluations failed: two trials, a baseline, a finalist."""
    monkeypatch.setattr("evomerge.campaign.open.build_executor", Failing)
    reasons = {5: "the server is down", 9: "the server is down", 11: "out of memory"}
    monkeypatch.setattr(Failing, "reasons", reasons)
    monkeypatch.setattr(Failing, "done", 0)
    run(tiny_folder)
    monkeypatch.setattr(Failing, "reasons", {})
    return tiny_folder


def reasons_of(out):
    return [e.reason for e in evaluations(out) if e.failed]


def test_what_failed_for_a_reason_is_made_again_and_the_rest_stays(failed):
    out = failed / "run"
    genomes = {e.ask: e.digest for e in evaluations(out) if e.optimizers_own}
    result = evomerge("retry", out, "--failed", "SERVER is down")
    assert "2 failed evaluations are made again" in result.stdout
    assert reasons_of(out) == ["out of memory"]
    run(failed)
    assert reasons_of(out) == ["out of memory"]
    own = [e for e in evaluations(out) if e.optimizers_own]
    assert {e.ask: e.digest for e in own} == genomes, "the same recipes, under the same asks"
    assert sorted(e.ask for e in own) == list(range(12))
    assert [e.role for e in evaluations(out) if e.split == "search"].count("baseline") == 4
    before = facts(out)
    run(failed)
    assert facts(out) == before, "replayed, with nothing left to do"


@pytest.mark.slow
def test_all_are_made_again_when_no_reason_is_given_and_a_kill_in_between_changes_nothing(failed):
    out = failed / "run"
    assert "3 failed evaluations" in evomerge("retry", out).stdout
    run(failed, overrides=["budget.trials=11"])  # one of the two trials, then stopped
    run(failed)
    assert reasons_of(out) == []
    own = [e for e in evaluations(out) if e.optimizers_own]
    assert sorted(e.ask for e in own) == list(range(12))


def test_a_reason_that_nothing_failed_for_is_refused_with_those_there_are(failed):
    said = evomerge("retry", failed / "run", "--failed", "typo", code=2).output
    assert "the reasons are: the server is down; out of memory" in said


def test_where_nothing_failed_nothing_is_done(done):
    assert "0 failed evaluations" in evomerge("retry", done / "run").stdout


def test_a_folder_without_a_run_is_named(tmp_path):
    assert "no run here" in evomerge("retry", tmp_path, code=2).output
    tiny.save_campaign(tmp_path)
    assert "no run here" not in evomerge("retry", tmp_path, code=2).output
    assert not (tmp_path / "study.db").exists()
