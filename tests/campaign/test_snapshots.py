"""A snapshot gives what the replay of the record gives, or nothing."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from domains import box, build, mixed, numbers, run
from optimizer_runs import OWN, SMALL
from running import facts
from running import run as run_campaign

from evomerge.campaign import snapshots
from evomerge.campaign.snapshots import Snapshots, beginning
from evomerge.judging.objectives import find_objective
from evomerge.judging.scores import Judge
from evomerge.search.optimizers import replay
from evomerge.search.optimizers.cma import SEPARABLE_ABOVE
from evomerge.search.spaces.genes import Domain
from evomerge.study.record import Evaluation

TASKS = ("first", "second")
ONES = np.ones(len(TASKS))
JUDGE = Judge(find_objective("mean", "objective", {}, TASKS), TASKS, ONES, ONES)
TRIALS, MORE = 36, 12


@pytest.fixture(autouse=True)
def of_few_trials(monkeypatch):
    monkeypatch.setattr(snapshots, "LEAST", 10)


def measure(genome):
    """Items that depend on the genome, judged as a campaign's."""
    rng = np.random.default_rng(int(1e6 * genome.sum()))
    chance = float(np.exp(-np.sum((genome - 0.7) ** 2)))
    return JUDGE.scores({task: (rng.random(12) < chance).astype(float) for task in TASKS})


def fresh(name, kind="mixed", seed=0):
    domain = {"mixed": numbers if name == "map" else mixed, "box": box}[kind]()
    return build(name, domain, seed, **SMALL.get(name, {}))


def trials_of(told):
    """The record of what an optimizer was told."""
    return [
        Evaluation(
            "search",
            f"digest {proposal.ask}",
            {},
            value=scores and scores.value,
            se=scores and scores.se,
            ask=proposal.ask,
            tells=proposal.tells,
            number=place,
        )
        for place, (proposal, scores) in enumerate(told)
    ]


def kept(file, optimizer, told, judge=JUDGE):
    """Write the snapshot of an optimizer that was told all of this."""
    written = Snapshots(file, beginning({"seed": 0}, optimizer, []))
    for trial in trials_of(told):
        written.told(trial)
    written.write(optimizer, judge)
    return written


def restored(file, optimizer, told, identity=None):
    found = Snapshots(file, beginning(identity or {"seed": 0}, optimizer, []))
    return found.restore(optimizer, JUDGE, trials_of(told))


def asked(optimizer, told, asks):
    return [(p.ask, p.tells, p.parents, p.genome.tobytes()) for p, _ in
            run(optimizer, list(told), asks, measure)[len(told):]]  # fmt: skip


@pytest.mark.parametrize("kind", ["mixed", "box"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "map" else n for n in OWN]
)
def test_after_a_snapshot_every_optimizer_proposes_what_it_proposes_after_a_replay(
    name, kind, tmp_path
):
    live, file = fresh(name, kind), tmp_path / "snapshot"
    told = run(live, [], TRIALS, measure)
    kept(file, live, told)
    assert file.exists(), "its state cannot be written: is it made of plain objects?"
    # more trials are on record than it covers: those are told one by one
    later = run(live, list(told), TRIALS + 5, measure)
    replayed, resumed = fresh(name, kind), fresh(name, kind)
    for proposal, scores in later:
        replayed.tell(proposal, scores)
    assert restored(file, resumed, later) == TRIALS
    for proposal, scores in later[TRIALS:]:
        resumed.tell(proposal, scores)
    wanted = asked(replayed, later, TRIALS + 5 + MORE)
    assert asked(resumed, later, TRIALS + 5 + MORE) == wanted
    assert resumed.state() == replayed.state()


@pytest.mark.parametrize("levels", [False, True])
def test_cma_of_many_genes_is_restored_to_the_last_bit(tmp_path, levels):
    def wide():
        genes = [*mixed().genes] if levels else []
        return build("cma", Domain([*genes, *box(SEPARABLE_ABOVE + 1).genes]))

    live, file = wide(), tmp_path / "snapshot"
    told = run(live, [], TRIALS, measure)
    kept(file, live, told)
    resumed = wide()
    assert restored(file, resumed, told) == TRIALS
    assert asked(resumed, told, TRIALS + MORE) == asked(live, told, TRIALS + MORE)


@pytest.mark.parametrize("name", ["cma", "m2n2"])
def test_a_screened_optimizer_is_restored_with_its_surrogate(name, tmp_path):
    def screened():
        return build(name, box(), 3, screen=3)

    live, file = screened(), tmp_path / "snapshot"
    told = run(live, [], TRIALS, measure)
    kept(file, live, told)
    replayed, resumed = screened(), screened()
    for proposal, scores in told:
        replayed.tell(proposal, scores)
    assert restored(file, resumed, told) == TRIALS
    assert asked(resumed, told, TRIALS + 3) == asked(replayed, told, TRIALS + 3)


def test_a_snapshot_of_another_history_is_passed_over(tmp_path):
    live, file = fresh("cma"), tmp_path / "snapshot"
    told = run(live, [], TRIALS, measure)
    kept(file, live, told)
    before = asked(fresh("cma"), [], 5)

    def untouched(history, identity=None):
        optimizer = fresh("cma")
        assert restored(file, optimizer, history, identity) == 0
        return asked(optimizer, [], 5) == before

    assert untouched(told[:-1]), "it covers more than the record"
    proposal, scores = told[7]
    other = [*told[:7], (proposal, scores and replace(scores, value=0.123)), *told[8:]]
    assert untouched(other), "a trial has another score"
    assert untouched([*told[:3], *told[4:], told[3]]), "trials were told in another order"
    assert untouched(told, {"seed": 1}), "another campaign"
    assert restored(file, fresh("cma"), told) == TRIALS


@pytest.mark.parametrize("at", [3, -40])
def test_a_damaged_snapshot_is_passed_over(tmp_path, at):
    live, file = fresh("cma"), tmp_path / "snapshot"
    told = run(live, [], TRIALS, measure)
    kept(file, live, told)
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    for damaged in (bytes(data), data[: len(data) // 2], b"", b"\n"):
        file.write_bytes(damaged)
        assert restored(file, fresh("cma"), told) == 0


def test_a_program_that_has_changed_reads_no_snapshot_of_the_old_one(tmp_path, monkeypatch):
    live, file = fresh("cma"), tmp_path / "snapshot"
    told = run(live, [], TRIALS, measure)
    kept(file, live, told)
    monkeypatch.setattr(snapshots, "_program", lambda: ["another"])
    assert restored(file, fresh("cma"), told) == 0


class Harmful:
    ran = False

    def __reduce__(self):
        return exec, ("import test_snapshots_was_run",)


@pytest.mark.parametrize("harm", [Harmful(), print, Path("x"), np.load, Snapshots])
def test_a_snapshot_that_holds_anything_else_is_refused(harm):
    text = pickle.dumps({"tells": 3, "harm": harm})
    with pytest.raises(pickle.UnpicklingError, match="no part of a snapshot"):
        snapshots._Reader(io.BytesIO(text), {}).load()


def test_a_snapshot_made_by_hand_runs_nothing_and_is_passed_over(tmp_path):
    live, file = fresh("cma"), tmp_path / "snapshot"
    told = run(live, [], TRIALS, measure)
    live.harm = Harmful()
    kept(file, live, told)
    assert not file.exists(), "what cannot be read is not written"
    assert restored(file, fresh("cma"), told) == 0


def test_few_trials_have_no_snapshot_and_many_have_one_after_a_tenth_more(tmp_path):
    live, file = fresh("cma"), tmp_path / "snapshot"
    told = run(live, [], TRIALS, measure)
    written, covered = Snapshots(file, beginning({}, live, [])), []
    for trial in trials_of(told):
        written.told(trial)
        written.write(live, JUDGE, due=True)
        if file.exists():
            covered.append(json.loads(file.read_bytes().partition(b"\n")[0])["trials"])
    assert list(dict.fromkeys(covered)) == [10, 12, 14, 16, 18, 20, 23, 26, 29, 32, 36]
    written.write(live, JUDGE)
    assert not list(tmp_path.glob(".*")), "a partial file is left behind"


@pytest.mark.slow
@pytest.mark.parametrize("rungs", [[], ["fitness.rungs=[6, 15, all]"]])
def test_a_campaign_goes_on_from_a_snapshot_as_from_a_replay_of_its_record(
    tiny_folder, monkeypatch, rungs
):
    monkeypatch.setattr(snapshots, "LEAST", 4)
    first = run_campaign(tiny_folder, overrides=["budget.trials=8", *rungs])
    other = tiny_folder / "other"
    shutil.copytree(first, other)
    (other / snapshots.FILE).unlink()
    told, tell = [], replay.tell
    monkeypatch.setattr(replay, "tell", lambda *given: told.append(given) or tell(*given))

    def gone_on(folder):
        told.clear()
        run_campaign(tiny_folder, folder, overrides=["budget.trials=14", *rungs])
        return facts(folder), len(told)

    (resumed, none), (replayed, all_of_them) = gone_on(first), gone_on(other)
    assert (none, all_of_them) == (0, 8)
    assert resumed == replayed
