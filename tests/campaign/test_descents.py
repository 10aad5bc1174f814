"""Gradient descents in a campaign: recorded, resumed exactly, paid for, and tried first."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tiny
import yaml
from executors import crash
from planted import choose_as
from running import evaluations, facts, run

from evomerge.campaign.setup import prepare
from evomerge.common.errors import CandidateError, EvomergeError, InputError
from evomerge.config import load_campaign
from evomerge.fitness.tasks import surrogate_losses
from evomerge.results.results import Results
from evomerge.search.descent import scales
from evomerge.study.run_folder import open_run
from evomerge.workers.job import attempt, perform
from evomerge.workers.worker import Worker

DESCENT = {"gradient": {"steps": 4, "batch": 6, "check": 2, "held_back": 0.2}}


def save(folder, *initial, **sections):
    tiny.save_campaign(folder, initial=list(initial), budget={"trials": 3}, **sections)


def records(out):
    _, study = open_run(out)
    return study.descents()


@pytest.fixture
def whole(tiny_folder):
    """A campaign with a descent, and its run's folder."""
    save(tiny_folder, DESCENT)
    return tiny_folder, run(tiny_folder)


def test_the_optimizer_tries_first_where_a_descent_ended(whole):
    _, out = whole
    [record] = records(out)
    assert record.done == "all steps were made"
    assert record.step == len(record.losses) == 4
    assert [step for step, _ in record.checks] == [0, 2, 4]
    first = next(e for e in evaluations(out) if e.ask == 0)
    np.testing.assert_array_equal(first.genome, record.best)
    assert record.best_step in (0, 2, 4)
    # 30 search items: 6 are held back and looked at three times; 6 documents a step, three each
    assert record.items == 4 * 3 * 6 + 3 * 6
    _, study = open_run(out)
    status = Results(study).status()
    assert status["items_asked"] == record.items + 3 * 30
    [shown] = status["descents"]
    assert (shown["from"], shown["steps"], shown["items"]) == ("uniform", 4, record.items)


def test_a_killed_descent_goes_on_as_if_nothing_had_happened(whole, monkeypatch, tmp_path):
    folder, out = whole
    expected = facts(out), records(out)
    other = tmp_path / "killed"
    references = [e for e in evaluations(out) if e.role in ("parent", "baseline")]
    before = sum(e.split == "search" for e in references)
    for jobs in (before + 2, 1, 3):  # in the descent, and again, and again
        crash(folder, other, monkeypatch, at=jobs)
    run(folder, other)
    assert (facts(other), records(other)) == expected


def test_the_mean_of_the_last_steps_is_the_end_and_survives_a_kill(
    tiny_folder, monkeypatch, tmp_path
):
    bare = {"batch": 6, "check": 0, "held_back": 0}
    ends = []
    for steps in (2, 3):
        save(tiny_folder, {"gradient": {**bare, "steps": steps}})
        [record] = records(run(tiny_folder, tmp_path / str(steps)))
        ends.append(record.best)
    save(tiny_folder, {"gradient": {**bare, "steps": 3, "average": 0.67}})
    out = tmp_path / "averaged"
    references = [e for e in evaluations(tmp_path / "3") if e.role in ("parent", "baseline")]
    before = sum(e.split == "search" for e in references)
    crash(tiny_folder, out, monkeypatch, at=before + 2)  # after two steps
    [begun] = records(out)
    assert begun.tail
    [record] = records(run(tiny_folder, out))
    assert record.best == pytest.approx(np.mean(ends, axis=0), abs=1e-12)
    assert ends[0] != ends[1]


def test_a_descent_that_took_the_driver_down_twice_goes_on_in_another_process(
    tiny_folder, monkeypatch, tmp_path
):
    save(tiny_folder, DESCENT)
    out, isolated = tmp_path / "out", []

    def dies(self, *args):
        raise SystemExit("the driver died")

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "losses", dies)
        for attempts in (1, 2):
            with pytest.raises(SystemExit):
                run(tiny_folder, out)
            assert records(out)[0].attempts == attempts

    def measure_isolated(job, spec):
        isolated.append(job.task)
        return attempt(job, partial(perform, Worker(spec)))

    monkeypatch.setattr("evomerge.workers.local.measure_isolated", measure_isolated)
    run(tiny_folder, out)
    assert isolated == ["losses"]
    assert records(out)[0].done == "all steps were made"


def test_items_of_a_descent_count_in_the_budget(tiny_folder):
    save(tiny_folder, DESCENT)
    out = run(tiny_folder, overrides=["budget={items: 120}"])
    [record] = records(out)
    own = [e for e in evaluations(out) if e.optimizers_own]
    assert len(own) == 1
    assert record.done == "all steps were made"
    assert record.items + 30 <= 120
    small = run(tiny_folder, tiny_folder / "small", overrides=["budget={items: 60}"])
    [stopped] = records(small)
    assert stopped.done == "the item budget has room for one trial more"
    assert stopped.items + 30 <= 60


def test_a_loss_that_is_not_finite_ends_the_campaign_with_one_message(tiny_folder, monkeypatch):
    def fails(self, *args):
        raise CandidateError("a document's loss came out as nan")

    monkeypatch.setattr(Worker, "losses", fails)
    save(tiny_folder, DESCENT)
    with pytest.raises(
        EvomergeError, match=r"initial\[0\]\.gradient: a document's loss .* nan; begin"
    ):
        run(tiny_folder)


def test_a_descent_from_the_best_parent_begins_there(tiny_folder):
    start = {"gradient": {**DESCENT["gradient"], "steps": 1, "from": "best_parent"}}
    save(tiny_folder, start)
    out = run(tiny_folder)
    [record] = records(out)
    on_search = [e for e in evaluations(out) if (e.role, e.split) == ("parent", "search")]
    parents = {e.name: e.value for e in on_search}
    assert parents[record.origin] == max(parents.values())


@pytest.mark.slow
def test_sets_of_the_experts_that_the_gradient_favours_are_tried_after_the_end(tiny_folder):
    start = {"gradient": {**DESCENT["gradient"], "sets": 4}}
    weights = {"method": "linear", "choose_experts": True, "genes": {"weight": [0, 1.5]}}
    save(tiny_folder, start, space={"weights": weights})
    out = run(tiny_folder)
    [record] = records(out)
    first, second, *_ = sorted(
        (e for e in evaluations(out) if e.optimizers_own), key=lambda e: e.ask
    )
    assert sorted(record.gains) == ["lang", "math"]
    best, other = sorted(record.gains, key=lambda name: -record.gains[name])
    used = [{name: e.params[f"use.{name}"] for name in (best, other)} for e in (first, second)]
    assert used == [{best: True, other: True}, {best: True, other: False}]
    np.testing.assert_array_equal(first.genome, record.best)
    assert np.count_nonzero(first.genome != second.genome) == 1


@pytest.mark.slow
def test_what_gradients_told_the_optimizer_is_noted_and_known_after_a_kill(
    tiny_folder, monkeypatch, tmp_path
):
    save(tiny_folder, DESCENT, optimizer={"kind": "cma", "population": 4, "screen": 4})
    whole = run(tiny_folder)
    _, study = open_run(whole)
    [record], [scale] = study.descents(), study.scales()
    np.testing.assert_array_equal(scale, scales(record))
    assert study.slopes() == record.slopes
    assert record.slopes[0] == [4]
    killed = tmp_path / "killed"
    before = sum(e.split == "search" and not e.optimizers_own for e in evaluations(whole))
    for jobs in (before + 3, 4 + 2):  # in the descent, and in the search
        crash(tiny_folder, killed, monkeypatch, at=jobs)
    run(tiny_folder, killed)
    assert facts(killed) == facts(whole)
    plain = run(tiny_folder, tmp_path / "plain", overrides=["optimizer.plain=true"])
    assert (open_run(plain)[1].scales(), open_run(plain)[1].slopes()) == ([], [])


def test_a_descent_from_the_best_known_may_begin_at_a_default_merge(tiny_folder):
    start = {"gradient": {**DESCENT["gradient"], "steps": 1, "from": "best_known"}}
    save(tiny_folder, start)
    out = run(tiny_folder)
    [record] = records(out)
    found = [e for e in evaluations(out) if e.split == "search" and e.name]
    known = open_run(out)[1].known_at_start()
    best = max((e for e in found if e.digest in known), key=lambda e: e.value)
    origin = next(e for e in found if e.name == record.origin)
    assert origin.value == best.value
    assert "baseline" in {e.role for e in found if e.digest in known}


REFUSALS = {
    "sets": ({}, {"sets": 2}, "no expert can be left out here; write space.weights.choose_exp"),
    "method": (
        {"space": {"weights": {"method": "twin", "genes": {"weight": [0, 1]}}}},
        {},
        "twin has no gradient",
    ),
    "genes": (
        {"space": {"weights": {"method": "ties", "genes": {"density": [0.2, 1]}}}},
        {},
        "no gene has a gradient; search weights, lambda or what else ties is smooth in",
    ),
    "origin": ({}, {"from": "nobody"}, "'nobody' is no point of this space; write one of uniform"),
    "path": (
        {"space": {"path": {"kind": "layer_swap", "outer": "lang", "inner": "math"}}},
        {},
        "a path has no gradient",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_has_no_gradient_is_refused_before_any_work(case, tiny_folder):
    sections, options, message = REFUSALS[case]
    save(tiny_folder, {"gradient": options}, **sections)
    with pytest.raises(InputError) as refused:
        prepare(load_campaign(tiny_folder / "campaign.yaml"))
    assert str(refused.value).startswith("initial[0].gradient")
    assert message in str(refused.value)


def test_a_task_without_a_loss_is_refused_by_name(tiny_folder):
    code = "def score(model, tokenizer, items):\n    return [1.0] * len(items)\n"
    (tiny_folder / "own.py").write_text(code)
    (tiny_folder / "documents.jsonl").write_text("".join(f'{{"n": {i}}}\n' for i in range(30)))
    save(tiny_folder, DESCENT)
    data = yaml.safe_load((tiny_folder / "campaign.yaml").read_text())
    own = {"task": "own", "callable": "own.py:score", "documents": "documents.jsonl"}
    data["fitness"]["tasks"].append(own)
    (tiny_folder / "campaign.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=r"initial\[0\]\.gradient: own \(callable\) has no loss"):
        prepare(load_campaign(tiny_folder / "campaign.yaml"))


def test_a_document_without_a_right_answer_is_refused_before_any_work(tiny_folder):
    save(tiny_folder, DESCENT)
    place = tiny_folder / "tasks" / "pick.jsonl"
    place.write_text(place.read_text().replace('"answer": 3', '"answer": 7'))
    config = load_campaign(tiny_folder / "campaign.yaml")
    wrong = r"initial\[0\]\.gradient: pick: item \w+ has no right choice, and \d+ more; mend the"
    with pytest.raises(InputError, match=wrong):
        prepare(config)
    prepare(load_campaign(tiny_folder / "campaign.yaml", ["fitness.surrogate_loss.kind=entropy"]))


@pytest.mark.slow
def test_where_targets_are_wrong_the_end_is_scored_lower_and_the_search_begins_elsewhere(
    tiny_folder, monkeypatch
):
    """Right is what the base chooses, but the loss wants what an expert does."""
    choose_as(tiny_folder, answer="base", wrong="math")
    monkeypatch.setattr(
        surrogate_losses, "_right_choices", lambda task, document, count: (document["wrong"],)
    )
    steep = {"steps": 6, "batch": 24, "check": 2, "rate": 0.1, "from": "base"}
    tiny.save_campaign(tiny_folder, initial=[{"gradient": steep}], budget={"trials": 8})
    out = run(tiny_folder)
    [record] = records(out)
    assert record.best_step > 0, "the wrong loss must fall"
    found = evaluations(out)
    base = next(e for e in found if e.name == "base" and e.split == "search")
    end, *others = sorted((e for e in found if e.optimizers_own), key=lambda e: e.ask)
    np.testing.assert_array_equal(end.genome, record.best)
    assert end.value < base.value == 1.0
    assert max(e.value for e in others) == base.value
    # what follows lies about the base, as the end of the descent does not
    center = np.mean([e.genome for e in others[1:]], axis=0)
    at_base = np.array(open_run(out)[1].known_at_start()[base.digest])
    assert np.linalg.norm(center - at_base) < np.linalg.norm(center - end.genome)
