"""Rungs in a campaign: fewer items for the bad, the same items for all, and an exact resume."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from executors import TwoSlots
from running import evaluations, facts, run

from evomerge.campaign.estimates import ScoreEstimator
from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.judging.estimators.mean import mean
from evomerge.results.results import Results
from evomerge.study.record import Evaluation
from evomerge.study.run_folder import open_run, study_place
from evomerge.study.study import Study
from evomerge.workers.worker import Worker

RUNGS = [
    "fitness.rungs=[6, 15, all]",
    "fitness.race={keep: 0.25, confidence: 0.5}",
    "budget.trials=16",
    "optimizer.plain=true",  # around the best parent none would be stopped
]


@pytest.fixture(scope="module")
def pruned_run(tmp_path_factory):
    """A run with rungs, and what its worker was asked, in order: (digest, split, items)."""
    import tiny

    folder = tmp_path_factory.mktemp("pruned_run")
    tiny.save_campaign(folder)
    asked, measure = [], Worker.measure

    def observed(self, recipe, split, items=None):
        done = measure(self, recipe, split, items)
        asked.append((recipe.digest, split, sum(len(v) for v in done.scores.values())))
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "measure", observed)
        out = run(folder, overrides=RUNGS)
    return out, asked


def own(out):
    return [e for e in evaluations(out) if e.optimizers_own]


def _measured(trial):
    return tuple(np.flatnonzero(np.isfinite(trial.scores["pick"])))


def test_some_are_stopped_and_all_that_were_stopped_saw_the_same_items(pruned_run):
    trials = own(pruned_run[0])
    stopped = [t for t in trials if t.estimated]
    assert len(stopped) >= 3
    for asked in (6, 15):
        seen = {_measured(t) for t in stopped if t.asked == asked}
        assert all(len(places) == asked for places in seen)
        assert len(seen) <= 1
    assert {len(_measured(t)) for t in trials if not t.estimated} == {30}


def test_a_worker_is_asked_each_item_of_a_candidate_once(pruned_run):
    out, asked = pruned_run
    for trial in own(out):
        if not trial.seconds:
            continue  # looked up
        parts = [n for digest, split, n in asked if (digest, split) == (trial.digest, "search")]
        assert sum(parts) == trial.asked == len(_measured(trial))
        assert parts == [6, 9, 15][: len(parts)]


def test_what_was_estimated_is_never_best_and_counted_apart(pruned_run):
    config, study = open_run(pruned_run[0])
    trials = own(pruned_run[0])
    stopped = [t for t in trials if t.estimated]
    status = Results(study).status()
    assert status["pruned"] == len(stopped)
    assert status["completed"] == len(trials) - len(stopped)
    numbers = {t.number for t in stopped}
    assert status["best"]["trial"] not in numbers
    assert Results(study).best()["trial"] not in numbers
    finalists = {e.digest for e in evaluations(pruned_run[0]) if e.role == "finalist"}
    assert not finalists & {t.digest for t in stopped}
    storage, name = study_place(config, pruned_run[0])
    loaded = optuna.load_study(study_name=name, storage=storage)
    assert loaded.best_trial.number not in numbers
    pruned = [t for t in loaded.trials if t.state == optuna.trial.TrialState.PRUNED]
    assert {t.number for t in pruned} == numbers
    assert all(t.intermediate_values for t in pruned)


@pytest.mark.parametrize(
    "killed_at", [12, *(pytest.param(at, marks=pytest.mark.slow) for at in (9, 17))]
)
def test_dying_on_a_rung_repeats_at_most_that_rung(pruned_run, tmp_path, monkeypatch, killed_at):
    out, asked = pruned_run
    measure, left, repeated = Worker.measure, [killed_at], []

    def dies(self, recipe, split, items=None):
        if not left[0]:
            raise SystemExit("killed")
        left[0] -= 1
        return measure(self, recipe, split, items)

    def observed(self, recipe, split, items=None):
        done = measure(self, recipe, split, items)
        repeated.append((recipe.digest, split, sum(len(v) for v in done.scores.values())))
        return done

    monkeypatch.setattr(Worker, "measure", dies)
    with pytest.raises(SystemExit):
        run(out.parent, tmp_path / "run", RUNGS)
    monkeypatch.setattr(Worker, "measure", observed)
    again = run(out.parent, tmp_path / "run", RUNGS)
    assert facts(again) == facts(out)
    assert repeated == asked[killed_at:]


@pytest.mark.slow
@pytest.mark.parametrize("at", [12, pytest.param(19, marks=pytest.mark.slow)])
def test_with_several_workers_a_death_repeats_only_the_rungs_in_flight(
    pruned_run, tmp_path, monkeypatch, at
):
    measure, asked, left = Worker.measure, [], [at]

    class Dying(TwoSlots):
        def wait(self):
            if not left[0]:
                raise SystemError("the driver died")
            left[0] -= 1
            return super().wait()

    def observed(self, recipe, split, items=None):
        done = measure(self, recipe, split, items)
        asked.append((recipe.digest, split, sum(len(v) for v in done.scores.values())))
        return done

    monkeypatch.setattr(Worker, "measure", observed)
    monkeypatch.setattr("evomerge.campaign.open.build_executor", Dying)
    with pytest.raises(SystemError):
        run(pruned_run[0].parent, tmp_path / "run", RUNGS)
    left[0] = -1  # never again
    out = run(pruned_run[0].parent, tmp_path / "run", RUNGS)
    assert len(set(asked)) == len(asked)  # what was in flight had not been measured
    trials = own(out)
    assert sorted(t.ask for t in trials) == list(range(16))
    for trial in trials:
        parts = [n for digest, split, n in asked if (digest, split) == (trial.digest, "search")]
        assert sum(parts) == len(_measured(trial))


def test_an_estimator_for_metrics_between_0_and_1_gives_way_to_the_mean(pruned_run, tmp_path):
    """Perplexities, say: the campaign goes on, and the user is told."""
    said, trial = [], next(t for t in own(pruned_run[0]) if t.estimated)
    listener = SimpleNamespace(said=said.append)
    items = {"pick": 7 * np.ones(30)}
    learner = ScoreEstimator(
        "gmp_irt", [{"pick": np.arange(6)}], {"a": items, "b": items}, listener
    )
    assert learner(trial.scores) == mean(trial.scores)
    assert len(said) == 1
    assert "gmp_irt is switched off" in said[0]


def test_rungs_that_do_not_fit_are_refused_with_their_key(tiny_folder):
    for rungs, problem in (
        ("[1, all]", "at least 2"),
        ("[30, all]", "less than the 30 items"),
        ("[15, 6, all]", "rising"),
        ("[6, 15]", "rising"),
    ):
        with pytest.raises(InputError, match=rf"fitness\.rungs.*{problem}"):
            prepare(load_campaign(tiny_folder / "campaign.yaml", [f"fitness.rungs={rungs}"]))


def test_a_study_without_rungs_does_not_go_on_with_them(pruned_run):
    with pytest.raises(InputError, match=r"fitness\.rungs"):
        run(pruned_run[0].parent, pruned_run[0], ["fitness.rungs=[6, all]", *RUNGS[1:]])


def test_an_estimate_comes_back_from_the_study_bit_for_bit(pruned_run, tmp_path):
    first = next(t for t in own(pruned_run[0]) if t.estimated)
    assert isinstance(first, Evaluation)
    _, study = open_run(pruned_run[0])
    with Study.read(study._url, study.name) as again:
        found = next(e for e in again.evaluations() if e.number == first.number)
    assert (found.value, found.se, found.rungs) == (first.value, first.se, first.rungs)
    assert found.estimates == first.estimates
