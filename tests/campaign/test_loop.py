"""The whole loop: kill, resume, replay; one worker in process."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
import tiny
from executors import TwoSlots, crash
from running import evaluations, facts, run

from evomerge.campaign import recorder
from evomerge.campaign.in_flight import ATTEMPTS
from evomerge.common.errors import EvomergeError, InputError
from evomerge.results.results import Results
from evomerge.search.optimizers import replay
from evomerge.search.optimizers.base import ask_index
from evomerge.study.run_folder import open_run
from evomerge.workers.job import Outcome
from evomerge.workers.local import LocalExecutor
from evomerge.workers.worker import Worker


def test_parents_and_baselines_come_first_then_trials_then_select_then_test(whole):
    order = [(e.split, e.role) for e in evaluations(whole)]
    assert order[:7] == [("search", "parent")] * 3 + [("search", "baseline")] * 4
    assert order[7:19] == [("search", "search")] * 12
    splits = [split for split, _ in order[19:]]
    assert splits == sorted(splits)  # every select before every test
    assert Counter(order[19:]) == {
        ("select", "parent"): 3,
        ("select", "baseline"): 4,
        ("select", "finalist"): 3,
        ("test", "parent"): 3,
        ("test", "baseline"): 4,
        ("test", "finalist"): 1,
    }


def test_the_winner_is_the_finalist_that_is_best_on_select(whole):
    found = evaluations(whole)
    on_select = [e for e in found if e.split == "select" and e.role == "finalist"]
    best = max(on_select, key=lambda e: e.value)
    summary = Results(open_run(whole)[1]).best()
    assert summary["digest"] == best.digest
    assert summary["scores"]["select"]["mean"] == pytest.approx(best.value)
    assert set(summary["parents"]) == {"base", "math", "lang"}
    test = summary["scores"]["test"]
    assert test["low"] <= test["mean"] <= test["high"]
    ours = next(e for e in found if e.split == "test" and e.digest == best.digest)
    base = next(e for e in found if e.split == "test" and e.name == "base")
    difference = summary["parents"]["base"]["test"]["winner_minus_this"]["difference"]
    assert difference == pytest.approx(ours.value - base.value)


def test_no_item_is_in_two_splits_and_the_winner_is_scored_on_all(whole):
    _, study = open_run(whole)
    items = study.items()
    per_split = [set(items[s]["pick"]) for s in ("search", "select", "test")]
    assert sum(map(len, per_split)) == len(set.union(*per_split)) == 60
    summary = Results(study).best()
    assert sum(summary["scores"][s]["tasks"]["pick"]["n"] for s in summary["scores"]) == 60


def test_the_study_is_done_and_a_second_run_repeats_nothing(whole, monkeypatch):
    assert Results(open_run(whole)[1]).status()["done"]
    before = facts(whole)
    monkeypatch.setattr(Worker, "measure", lambda *_: pytest.fail("measured again"))
    run(whole.parent)
    assert facts(whole) == before


def test_a_larger_budget_extends_the_study_and_says_that_the_test_was_seen(tiny_folder):
    out = run(tiny_folder, overrides=["budget.trials=4"])
    before = facts(out)
    run(tiny_folder, overrides=["budget.trials=8"])
    assert facts(out)[: len(before)] == before
    status = Results(open_run(out)[1]).status()
    assert status["trials"] == 8
    opened = Results(open_run(out)[1]).best()["test_opened"]
    assert [entry["trials"] for entry in opened] == [4, 8]
    assert status["done"]


def kill_and_resume(folder, out, moments):
    """Start the campaign, kill -9 it at each moment (s after start), then let it finish."""
    command = [sys.executable, "-m", "evomerge", "search", "campaign.yaml", "--out", str(out)]
    for moment in [*moments, None]:
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if moment is None:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
        else:
            _wait_for_study(out, process)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.communicate()


def _wait_for_study(out, process):
    """Until the driver writes; start-up takes seconds, and nothing can be lost there."""
    stamp = out / "study.db.driver"
    while process.poll() is None and not stamp.exists():
        time.sleep(0.02)


def test_kill_and_resume_repeats_nothing_and_changes_nothing(tiny_folder, whole):
    out = tiny_folder / "killed"
    moments = [random.Random(1).uniform(0.3, 3.0) for _ in range(3)]
    kill_and_resume(tiny_folder, out, moments)
    assert facts(out) == facts(whole)
    assert Results(open_run(out)[1]).best() == Results(open_run(whole)[1]).best()


@pytest.mark.parametrize(
    "at", [5, 20, *(pytest.param(at, marks=pytest.mark.slow) for at in (0, 9, 14, 26))]
)
def test_dying_inside_any_phase_loses_only_the_evaluation_in_flight(
    tiny_folder, whole, monkeypatch, at
):
    out = tiny_folder / "run"
    crash(tiny_folder, out, monkeypatch, at)
    assert len(evaluations(out)) == at
    run(tiny_folder, out)
    assert facts(out) == facts(whole)


DEADLY_DRIVER = """
import pathlib, sys
sys.path[:0] = {path!r}
import executors, running, evomerge.workers.isolated, evomerge.workers.local
evomerge.workers.local.Worker = evomerge.workers.isolated.Worker = executors.Deadly
evomerge.workers.isolated._method = lambda config: "fork"  # with the deadly worker
if __name__ == "__main__":
    running.run(*map(pathlib.Path, sys.argv[1:]))
"""


def search_with_deadly_workers(folder, out):
    """The exit code of a driver, in a process of its own."""
    script = folder / "driver.py"
    script.write_text(DEADLY_DRIVER.format(path=sys.path))
    return subprocess.run([sys.executable, script, folder, out], check=False).returncode


@pytest.mark.slow
def test_a_candidate_that_kills_the_driver_is_retired_after_three_attempts(
    tiny_folder, whole, monkeypatch
):
    """The third is made in a process of its own, which dies in the driver's place."""
    trials = [e.digest for e in evaluations(whole) if e.optimizers_own]
    monkeypatch.setenv("DEADLY", trials[2])
    out = tiny_folder / "run"
    for _ in range(ATTEMPTS - 1):
        assert search_with_deadly_workers(tiny_folder, out) == 9
        assert len(evaluations(out)) == 9
    assert search_with_deadly_workers(tiny_folder, out) == 0
    found = [e for e in evaluations(out) if e.optimizers_own]
    reason = "its worker ended itself (exit code 9) (3 attempts)"
    assert [(e.ask, e.reason) for e in found if e.failed] == [(2, reason)]
    assert len(found) == 12


@pytest.mark.slow
def test_whoever_kills_the_driver_retires_no_candidate(tiny_folder, whole, monkeypatch):
    """A last attempt that outlives the driver's death is made again, however often."""
    out = tiny_folder / "run"
    for _ in range(ATTEMPTS + 2):
        crash(tiny_folder, out, monkeypatch, at=9 - len(evaluations(out)) if out.exists() else 9)
    run(tiny_folder, out)
    found = [e for e in evaluations(out) if e.optimizers_own]
    assert found[2].attempt == ATTEMPTS
    assert [e.digest for e in found] == [e.digest for e in evaluations(whole) if e.optimizers_own]
    assert not any(e.failed for e in found)


class InterruptedExecutor(LocalExecutor):
    """Ctrl-C in the middle of one measurement."""

    at = 0

    def wait(self):
        InterruptedExecutor.at -= 1
        if InterruptedExecutor.at < 0:
            raise KeyboardInterrupt
        return super().wait()


@pytest.mark.parametrize("at", [8, pytest.param(0, marks=pytest.mark.slow)])
def test_orderly_stops_are_no_fault_of_the_candidate_in_flight(tiny_folder, whole, monkeypatch, at):
    out = tiny_folder / "run"
    with monkeypatch.context() as patch:
        patch.setattr("evomerge.campaign.open.build_executor", InterruptedExecutor)
        for _ in range(ATTEMPTS + 2):
            InterruptedExecutor.at = at - (len(evaluations(out)) if out.exists() else 0)
            with pytest.raises(KeyboardInterrupt):
                run(tiny_folder, out)
    run(tiny_folder, out)
    assert facts(out) == facts(whole)


def test_with_several_workers_what_is_in_flight_outlives_any_number_of_drivers(
    tiny_folder, whole, monkeypatch
):
    monkeypatch.setattr("evomerge.campaign.open.build_executor", TwoSlots)
    out = tiny_folder / "run"
    for _ in range(ATTEMPTS + 2):
        monkeypatch.setattr(TwoSlots, "left", 9 - (len(evaluations(out)) if out.exists() else 0))
        with pytest.raises(SystemError):
            run(tiny_folder, out)
    monkeypatch.setattr(TwoSlots, "left", -1)
    run(tiny_folder, out)
    found = [e for e in evaluations(out) if e.optimizers_own]
    assert sorted(e.ask for e in found) == list(range(12))
    assert {(e.failed, e.attempt) for e in found} == {(False, 1)}


class TwoOfOneKind(TwoSlots):
    """Notes what was in flight at a time."""

    seen: ClassVar = []

    def submit(self, job):
        super().submit(job)
        self.seen.append([(one.recipe.digest, one.split) for one in self.jobs])


def test_no_two_workers_measure_one_recipe_at_once(tiny_folder, monkeypatch):
    """An optimizer that proposes each genome twice in a row; the driver dies in between."""
    monkeypatch.setattr("evomerge.campaign.open.build_executor", TwoOfOneKind)
    monkeypatch.setattr(
        "evomerge.search.optimizers.random.RandomSearch._propose",
        lambda self, rng: (np.full(self.domain.dimension, ask_index(rng) // 2 / 8), ()),
    )
    random = ["optimizer={kind: random, plain: true}"]
    out = tiny_folder / "run"
    monkeypatch.setattr(TwoSlots, "left", 11)
    with pytest.raises(SystemError):
        run(tiny_folder, out, random)
    before = evaluations(out)
    monkeypatch.setattr(TwoSlots, "left", -1)
    run(tiny_folder, out, random)
    assert all(len(set(together)) == len(together) for together in TwoOfOneKind.seen)
    assert any(len(together) == 2 for together in TwoOfOneKind.seen)
    found = [e for e in evaluations(out) if e.optimizers_own]
    assert len([e for e in before if e.optimizers_own]) % 2 == 0, "twins are recorded together"
    assert sorted(e.ask for e in found) == list(range(12))
    assert len([e for e in found if e.seconds]) == len({e.digest for e in found}) == 6
    assert all(len({e.value for e in found if e.ask // 2 == pair}) == 1 for pair in range(6))


def test_a_smaller_budget_than_what_is_recorded_and_in_flight_is_kept(tiny_folder, monkeypatch):
    out = tiny_folder / "run"
    crash(tiny_folder, out, monkeypatch, at=7 + 4)
    run(tiny_folder, out, overrides=["budget.trials=4"])
    assert Results(open_run(out)[1]).status()["trials"] == 4


def test_no_time_at_all_is_said_not_tripped_over(tiny_folder):
    with pytest.raises(EvomergeError, match="time was up before the first trial"):
        run(tiny_folder, deadline=time.monotonic() - 1)


def test_another_studys_folder_is_not_taken_over(whole):
    before = (whole / "campaign.yaml").read_text()
    with pytest.raises(InputError, match="holds the run of study 'tiny'"):
        run(whole.parent, overrides=["name=other"])
    assert (whole / "campaign.yaml").read_text() == before


class FlakyExecutor(LocalExecutor):
    """Loses the worker under chosen jobs, fails others."""

    lose, fail = Counter(), set()

    def wait(self):
        digest = self._job.recipe.digest
        if self.lose[digest] > 0:
            self.lose[digest] -= 1
            job, self._job = self._job, None
            return Outcome(job, reason="its worker died", retryable=True)
        if digest in self.fail:
            job, self._job = self._job, None
            return Outcome(job, reason="out of memory")
        return super().wait()


@pytest.mark.slow
def test_a_lost_worker_is_tried_again_and_failures_do_not_end_the_campaign(
    tiny_folder, whole, monkeypatch
):
    trials = [e.digest for e in evaluations(whole) if e.optimizers_own]
    FlakyExecutor.lose = Counter({trials[0]: 2, trials[1]: ATTEMPTS})
    FlakyExecutor.fail = {trials[2]}
    monkeypatch.setattr("evomerge.campaign.open.build_executor", FlakyExecutor)
    out = run(tiny_folder)
    found = [e for e in evaluations(out) if e.optimizers_own]
    assert [e.attempt for e in found[:3]] == [3, 3, 1]
    retired = f"its worker died ({ATTEMPTS} attempts)"
    assert [e.reason for e in found[:3]] == [None, retired, "out of memory"]
    assert len(found) == 12
    status = Results(open_run(out)[1]).status()
    assert status["failed"] == 2
    assert status["failures"] == {retired: 1, "out of memory": 1}


def test_a_base_that_cannot_be_scored_ends_the_run_and_is_not_recorded(tiny_folder, monkeypatch):
    monkeypatch.setattr(Worker, "measure", lambda *_: 1 / 0)
    with pytest.raises(EvomergeError, match="base model itself cannot be scored: ZeroDivision"):
        run(tiny_folder)
    assert evaluations(tiny_folder / "run") == []


def test_a_recipe_already_scored_is_looked_up(tiny_folder, monkeypatch):
    """An optimizer that proposes one genome for ever costs one measurement."""
    measured = Counter()
    measure = Worker.measure

    def counting(self, recipe, split):
        measured[recipe.digest, split] += 1
        return measure(self, recipe, split)

    monkeypatch.setattr(Worker, "measure", counting)
    monkeypatch.setattr(
        "evomerge.search.optimizers.random.RandomSearch._propose",
        lambda self, rng: (np.full(self.domain.dimension, 0.25), ()),
    )
    out = run(tiny_folder, overrides=["optimizer={kind: random}"])
    assert max(measured.values()) == 1
    trials = [e for e in evaluations(out) if e.optimizers_own]
    assert len(trials) == 12
    assert len({t.value for t in trials}) == 1


def test_a_deadline_ends_the_search_and_still_chooses_and_tests(tiny_folder):
    run(tiny_folder, overrides=["budget.trials=2"])
    out = run(tiny_folder, deadline=time.monotonic() - 1)
    status = Results(open_run(out)[1]).status()
    assert (status["trials"], status["budget"], status["done"]) == (2, 12, True)


def test_coverage_and_entropy_stand_beside_every_trial_of_an_archive(tmp_path):
    tiny.save_campaign(tmp_path)
    linear = "space.weights={method: task_arithmetic, genes: {weight: [-1, 2]}}"
    chosen = ["optimizer={kind: m2n2, population: 3}", linear, "budget.trials=9"]
    out = run(tmp_path, overrides=chosen)
    trials = [e for e in evaluations(out) if e.optimizers_own]
    nothing_yet = {"members": [], "coverage": 0.0, "entropy": 0.0}
    assert trials[0].state == nothing_yet
    assert trials[1].state["members"] == [trials[0].ask]
    solved = np.concatenate(list(trials[0].scores.values()))
    assert trials[1].state["coverage"] == pytest.approx(solved.mean())
    assert Results(open_run(out)[1]).status()["optimizer_state"] == trials[-1].state
    again = run(tmp_path, out=tmp_path / "short", overrides=[*chosen[:2], "budget.trials=6"])
    resumed = run(tmp_path, out=again, overrides=chosen)
    assert (out / "grams.npz").stat().st_size < 10_000
    own = [(e.digest, e.parents, e.state) for e in evaluations(resumed) if e.optimizers_own]
    assert own == [(e.digest, e.parents, e.state) for e in trials]


def trials_of(out):
    return [fact for fact in facts(out) if fact[0] == "search"]


@pytest.mark.slow
def test_a_campaign_over_paths_scores_models_of_many_depths_and_resumes_exactly(tiny_folder):
    path = {"kind": "slices", "count": 3, "max_depth": 5}
    tiny.save_campaign(tiny_folder, space={"path": path})
    whole = run(tiny_folder, tiny_folder / "whole", ["budget.trials=8"])
    parts = tiny_folder / "parts"
    run(tiny_folder, parts, ["budget.trials=3"])
    run(tiny_folder, parts, ["budget.trials=8"])
    assert trials_of(parts) == trials_of(whole)
    depths = {len(e.recipe["path"]) for e in evaluations(whole) if e.role == "search"}
    assert len(depths) > 1
    assert all(e.value is not None for e in evaluations(whole))


def test_a_trial_is_judged_once_and_replayed_on_resume_only(tiny_folder, monkeypatch):
    judged, replayed = [], []
    scores_of, tell = recorder.scores_of, replay.tell
    monkeypatch.setattr(recorder, "scores_of", lambda *a: judged.append(a) or scores_of(*a))
    monkeypatch.setattr(replay, "tell", lambda *a: replayed.append(a) or tell(*a))
    out = run(tiny_folder, overrides=["budget.trials=3"])
    assert len(judged) == len(evaluations(out))
    assert replayed == []
    run(tiny_folder, overrides=["budget.trials=5"])
    assert len(judged) == len(evaluations(out))
    assert len(replayed) == 3
