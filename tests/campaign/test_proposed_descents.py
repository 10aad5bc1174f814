"""Descents of proposals: chains of jobs in the loop, resumed exactly, paid for and told."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import tiny
import yaml
from executors import TwoSlots, crash
from planted import choose_as
from running import evaluations, facts, run

from evomerge.campaign.candidate import proposed_again
from evomerge.campaign.descents import BEHIND
from evomerge.campaign.setup import prepare, with_own_loss
from evomerge.common.errors import CandidateError, InputError
from evomerge.config import load_campaign, parse_campaign
from evomerge.fitness.tasks import surrogate_losses
from evomerge.report.all_figures import view_of
from evomerge.report.tables import proposed_rows
from evomerge.results.results import Results
from evomerge.search.descent import begin, finished
from evomerge.study.record import Descend, Evaluation
from evomerge.study.run_folder import open_run
from evomerge.workers.local import LocalExecutor
from evomerge.workers.worker import Worker

OPTIMIZER = {"kind": "gradient", "steps": 3, "batch": 6, "check": 2}


def save(folder, optimizer=OPTIMIZER, **sections):
    tiny.save_campaign(folder, optimizer=optimizer, **{"budget": {"trials": 3}, **sections})


def own(out):
    return sorted((e for e in evaluations(out) if e.optimizers_own), key=lambda e: e.ask)


def descents(out):
    return [e.descent for e in own(out)]


@pytest.fixture
def whole(tiny_folder):
    """A campaign of descents, and its run's folder."""
    save(tiny_folder)
    return tiny_folder, run(tiny_folder)


def test_what_is_told_is_where_a_descent_ended(whole):
    _, out = whole
    known, *others = own(out)
    assert known.descent is None, "the best that is known is tried as it is"
    assert others[0].descent.origin == "uniform"
    for trial in others:
        record = trial.descent
        assert record.done == "all steps were made"
        assert [step for step, _ in record.checks] == [0, 2, 3]
        np.testing.assert_array_equal(trial.genome, record.best)
        # 30 search items: 6 held back are looked at three times; 6 documents a step, three each
        assert record.items == 3 * 3 * 6 + 3 * 6
        assert trial.cost(30) == record.items + 30
    _, study = open_run(out)
    status = Results(study).status()
    spent = sum(e.descent.items for e in others)
    assert status["items_asked"] == 3 * 30 + spent
    summary = status["proposed_descents"]
    assert (summary["trials"], summary["steps"], summary["items"]) == (2, 6, spent)
    assert summary["in_flight"] == []
    assert proposed_rows(summary)["trials by gradient"] == f"2, of 6 steps in all; {spent} items"
    _, genes = view_of(study).sections["descents"]
    assert [len(trace.x) for trace in genes.figure.data] == [3] * len(study.identity["genes"])


def test_a_withdrawn_trial_is_proposed_again_with_its_descent():
    asked = Descend("uniform", 3)
    start, end = np.array([0.5, 0.5]), np.array([0.2, 0.9])
    record = finished(replace(begin("uniform", start, asked), best=end.tolist(), done="it failed"))
    trial = Evaluation("search", "d", {}, genome=end, ask=4, tells=2, parents=(1,), descent=record)
    again = proposed_again(trial, 7)
    assert (again.ask, again.tells, again.parents, again.descent) == (4, 7, (1,), asked)
    np.testing.assert_array_equal(again.genome, start)


@pytest.mark.slow
def test_a_campaign_killed_after_every_job_goes_on_as_if_nothing_had_happened(
    whole, monkeypatch, tmp_path
):
    folder, out = whole
    expected = facts(out), descents(out), [e.genome.tobytes() for e in own(out)]
    other = tmp_path / "killed"
    references = [e for e in evaluations(out) if e.role in ("parent", "baseline")]
    before = sum(e.split == "search" for e in references)
    crash(folder, other, monkeypatch, at=before)  # in the first job of the first descent
    for _ in range(8):  # each gets through one job, to the end of the first and on
        crash(folder, other, monkeypatch, at=1)
    run(folder, other)
    assert (facts(other), descents(other), [e.genome.tobytes() for e in own(other)]) == expected


@pytest.mark.slow
def test_a_descent_that_leads_nowhere_stops_half_way_and_its_best_point_is_scored(
    tiny_folder, monkeypatch
):
    losses, looks = Worker.losses, count()

    def falls_three_times(self, recipe, items):
        found, look = losses(self, recipe, items), next(looks)
        by = -look if look < 3 * 5 else 10  # of five looks each
        return replace(found, losses={"pick": found.losses["pick"] + by})

    monkeypatch.setattr(Worker, "losses", falls_three_times)
    save(tiny_folder, {**OPTIMIZER, "steps": 4, "check": 1}, budget={"trials": 5})
    _, *others, last = own(run(tiny_folder))
    assert [one.descent.done for one in others] == ["all steps were made"] * 3
    assert (last.descent.done, last.descent.step) == (BEHIND, 2)
    assert last.descent.items == 2 * 3 * 6 + 3 * 6, "it cost no more than it made"
    assert last.value is not None
    np.testing.assert_array_equal(last.genome, last.descent.start)


@pytest.mark.slow
def test_a_frank_wolfe_step_of_the_whole_way_ends_at_one_model_in_each_group(tiny_folder):
    optimizer = {"kind": "frank_wolfe", "steps": 1, "check": 1, "batch": 6, "rate": 1.0}
    save(tiny_folder, optimizer, budget={"trials": 3})
    out = run(tiny_folder)
    space = prepare(load_campaign(tiny_folder / "campaign.yaml")).space
    hulls = space.vertices()
    moved = [e for e in own(out) if e.descent and e.descent.best_step == 1]
    assert moved, "no step was better than its start"
    for trial in moved:
        for block in hulls.blocks:
            there = trial.genome[block], np.array(trial.descent.start)[block]
            stands = [*hulls.points[:, block], there[1]]  # it stays where all would be worse
            assert any(np.array_equal(there[0], one) for one in stands)


def test_frank_wolfe_needs_genes_that_are_weights_of_experts(tiny_folder):
    space = {"weights": {"method": "task_arithmetic", "genes": {"lambda": [0, 1]}}}
    save(tiny_folder, {"kind": "frank_wolfe"}, space=space)
    with pytest.raises(InputError, match=r"optimizer\.kind: frank_wolfe steps towards single exp"):
        prepare(load_campaign(tiny_folder / "campaign.yaml"))


@pytest.mark.slow
def test_descents_that_the_time_ends_rest_and_go_on_in_the_next_session(
    whole, monkeypatch, tmp_path
):
    folder, out = whole
    jobs, begin = [], LocalExecutor.submit

    def submit(self, job):
        jobs.append(job.task)
        begin(self, job)

    other = tmp_path / "nights"
    for more in (2, 5):
        with monkeypatch.context() as patch:
            patch.setattr(LocalExecutor, "submit", submit)
            wanted = sum(task != "score" for task in jobs) + more
            for where in ("loop", "evaluator"):
                patch.setattr(
                    f"evomerge.campaign.{where}.in_time",
                    lambda deadline, wanted=wanted: sum(task != "score" for task in jobs) < wanted,
                )
            run(folder, other)
    assert len(own(other)) == 2, "the second descent is still in flight"
    run(folder, other)
    assert own(other)[-1].genome.tobytes() == own(out)[-1].genome.tobytes()
    assert descents(other) == descents(out)


@pytest.mark.slow
def test_among_several_workers_descents_run_side_by_side_and_a_kill_loses_nothing(
    tiny_folder, monkeypatch
):
    save(tiny_folder, {**OPTIMIZER, "steps": 2}, budget={"trials": 5})
    order = []

    class Watched(TwoSlots):
        def submit(self, job):
            order.append(job)
            super().submit(job)

    monkeypatch.setattr("evomerge.campaign.open.build_executor", Watched)
    references = 7
    monkeypatch.setattr(TwoSlots, "left", references + 6)
    with pytest.raises(SystemError):
        run(tiny_folder)
    steps = [job.ticket for job in order if job.task == "gradient"]
    assert len(set(steps[:2])) == 2, "two descents, step by step in turn"
    begun = {m.ask: m.descent for m in open_run(tiny_folder / "run")[1].markers() if m.descent}
    monkeypatch.setattr(TwoSlots, "left", -1)
    out = run(tiny_folder)
    assert [trial.ask for trial in own(out)] == list(range(5))
    for trial in own(out)[1:]:
        assert trial.descent.done == "all steps were made"
        if trial.ask in begun:  # what had been looked at by then was not looked at again
            before = begun[trial.ask]
            assert trial.descent.checks[: len(before.checks)] == before.checks
            assert trial.descent.losses[: len(before.losses)] == before.losses


@pytest.mark.slow
def test_items_of_descents_count_in_the_budget_and_a_failure_ends_one_at_its_best(
    tiny_folder, monkeypatch
):
    save(tiny_folder)
    out = run(tiny_folder, overrides=["budget={items: 110}"])
    known, trial, last = own(out)
    assert trial.descent.done == "the item budget has room for one trial more"
    assert known.cost(30) + trial.cost(30) == 30 + 48 + 30
    assert (last.descent.step, last.descent.items) == (0, 0)  # asked for what was left: scored
    gradient = Worker.gradient

    def fails(self, recipe, items, weights=None):
        fails.left -= 1
        if fails.left < 0:
            raise CandidateError("a document's loss came out as nan")
        return gradient(self, recipe, items, weights)

    fails.left = 2
    monkeypatch.setattr(Worker, "gradient", fails)
    failed = own(run(tiny_folder, tiny_folder / "fails"))
    assert [e.descent.step for e in failed[1:]] == [2, 0]
    assert all("nan" in e.descent.done and e.value is not None for e in failed[1:])
    np.testing.assert_array_equal(failed[1].genome, failed[1].descent.best)
    np.testing.assert_array_equal(failed[2].genome, failed[2].descent.start)


@pytest.mark.slow
def test_evolution_with_gradient_mutation_resumes_exactly(tiny_folder, monkeypatch, tmp_path):
    save(tiny_folder, {"kind": "m2n2", "gradient": 0.7, "warmup": 1}, budget={"trials": 8})
    out = run(tiny_folder)
    children = [trial for trial in own(out) if trial.descent]
    assert children
    assert all(trial.descent.step == 3 and not trial.descent.checks for trial in children)
    assert {trial.descent.asked.task for trial in children} <= {"pick", None}
    other = tmp_path / "killed"
    for jobs in (9, 5, 3):
        crash(tiny_folder, other, monkeypatch, at=jobs)
    run(tiny_folder, other)
    assert (facts(other), descents(other)) == (facts(out), descents(out))


@pytest.mark.slow
def test_where_targets_are_wrong_the_loss_falls_and_the_ends_do_not_win(tiny_folder, monkeypatch):
    """Right is what the base chooses, but the loss wants what an expert does."""
    choose_as(tiny_folder, answer="base", wrong="math")
    monkeypatch.setattr(
        surrogate_losses, "_right_choices", lambda task, document, count: (document["wrong"],)
    )
    save(tiny_folder, {"kind": "gradient", "steps": 6, "batch": 24, "check": 2, "rate": 0.1})
    out = run(tiny_folder)
    found = evaluations(out)
    base = next(e for e in found if e.name == "base" and e.split == "search")
    known, *ends = own(out)
    assert known.value == base.value == 1.0
    misled = [e for e in ends if e.descent.best_step > 0]
    assert misled, "the wrong loss must fall"
    assert all(e.value < base.value for e in misled)
    assert Results(open_run(out)[1]).best()["digest"] == known.digest


LOSS = {"include_path": "tasks", "tasks": [{"task": "pick"}], "select_top": 1}


@pytest.mark.slow
def test_adamerging_is_gradient_on_the_entropy(tiny_folder):
    found = []
    for name, kind, more in (
        ("own", "adamerging", {}),
        ("said", "gradient", {"surrogate_loss": {"kind": "entropy"}}),
        ("right", "gradient", {}),
    ):
        save(tiny_folder, {**OPTIMIZER, "kind": kind}, fitness={**LOSS, **more})
        found.append(descents(run(tiny_folder, tiny_folder / name)))
    own, said, right = found
    assert own == said
    assert own[1].losses != right[1].losses
    assert all(0 < loss <= np.log(4) for loss in own[1].losses)  # of four choices


def test_the_loss_that_an_optimizer_is_named_for_is_refused_beside_another():
    def given(name, **loss):
        fitness = {**tiny.campaign_data()["fitness"], "surrogate_loss": loss}
        return parse_campaign(tiny.campaign_data(optimizer={"kind": name}, fitness=fitness), "x")

    assert with_own_loss(given("adamerging")).fitness.surrogate_loss.kind == "entropy"
    assert with_own_loss(given("adamerging", tokens=8)).fitness.surrogate_loss.tokens == 8
    assert with_own_loss(given("gradient", kind="entropy")).fitness.surrogate_loss.kind == "entropy"
    for wrong in (given("adamerging", kind="supervised"), given("expert_merging", kind="entropy")):
        with pytest.raises(
            InputError, match=r"surrogate_loss\.kind: \w+ follows \w+, not \w+; leave"
        ):
            with_own_loss(wrong)


REFUSALS = {
    "teachers": (
        {"optimizer": {"kind": "expert_merging"}},
        {},
        "fitness.surrogate_loss.teachers: pick has no expert to learn from",
    ),
    "method": (
        {"optimizer": {"kind": "m2n2", "gradient": 0.5}},
        {"space": {"weights": {"method": "twin", "genes": {"weight": [0, 1]}}}},
        "optimizer.gradient: twin has no gradient",
    ),
    "path": (
        {"optimizer": {"kind": "gradient"}},
        {"space": {"path": {"kind": "layer_swap", "outer": "lang", "inner": "math"}}},
        "optimizer.kind: a path has no gradient",
    ),
    "genes": (
        {"optimizer": {"kind": "gradient"}},
        {"space": {"weights": {"method": "ties", "genes": {"density": [0.2, 1]}}}},
        "optimizer.kind: no gene has a gradient",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_has_no_gradient_is_refused_before_any_work(case, tiny_folder):
    optimizer, sections, message = REFUSALS[case]
    save(tiny_folder, **optimizer, **sections)
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        prepare(load_campaign(tiny_folder / "campaign.yaml"))


def test_a_task_without_a_loss_is_refused_by_name(tiny_folder):
    code = "def score(model, tokenizer, items):\n    return [1.0] * len(items)\n"
    (tiny_folder / "own.py").write_text(code)
    (tiny_folder / "documents.jsonl").write_text("".join(f'{{"n": {i}}}\n' for i in range(30)))
    save(tiny_folder)
    data = yaml.safe_load((tiny_folder / "campaign.yaml").read_text())
    data["fitness"]["tasks"].append(
        {"task": "own", "callable": "own.py:score", "documents": "documents.jsonl"}
    )
    (tiny_folder / "campaign.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=r"optimizer\.kind: own \(callable\) has no loss"):
        prepare(load_campaign(tiny_folder / "campaign.yaml"))
