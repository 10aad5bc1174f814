"""A polish descends from the best finalist, and counts only if it is better on select."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import yaml
from executors import crash
from planted import choose_as
from running import evaluations, facts, run
from typer.testing import CliRunner

from evomerge.campaign.setup import prepare
from evomerge.cli import app
from evomerge.common.errors import CandidateError, InputError
from evomerge.config import load_campaign, parse_campaign
from evomerge.export.trial import export_trial
from evomerge.fitness.tasks import surrogate_losses
from evomerge.report.pages.report import write_report
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run
from evomerge.workers.worker import Worker

POLISH = {"steps": 4, "batch": 24, "check": 2, "rate": 0.15}
TRIALS = 1


def save(folder, **sections):
    given = {
        "polish": POLISH,
        "budget": {"trials": TRIALS},
        "initial": ["base"],
        "optimizer": {"kind": "random", "plain": True},  # else it tries the expert itself
        **sections,
    }
    tiny.save_campaign(folder, **{key: value for key, value in given.items() if value is not None})


def study_of(out):
    return open_run(out)[1]


@pytest.fixture
def polished(tiny_folder):
    """A campaign whose right answers are an expert's, so that its loss leads there; its run."""
    choose_as(tiny_folder, answer="math")
    save(tiny_folder)
    return tiny_folder, run(tiny_folder)


def test_an_end_that_is_better_on_select_is_the_winner_everywhere(polished, tmp_path):
    folder, out = polished
    study = study_of(out)
    results = Results(study)
    [record] = study.polished()
    found = evaluations(out)
    own = [e for e in found if e.optimizers_own]
    [end] = [e for e in found if e.role == "polished"]
    origin = next(e for e in own if e.number == record.trial)
    # 1. it began at the best finalist, and ended elsewhere
    on_select = {e.digest: e.value for e in found if e.split == "select"}
    assert on_select[origin.digest] == max(on_select[e.digest] for e in own)
    assert end.parents == (origin.ask,)
    np.testing.assert_array_equal(end.genome, record.descent.best)
    assert on_select[end.digest] > on_select[origin.digest]
    # 2. it is the winner, and test was opened once, for it
    concluded = study.note("concluded")
    assert concluded["winner"] == end.digest
    assert {end.digest, origin.digest} <= set(concluded["finalists"])
    assert study.note("test_opened") == [{"trials": TRIALS, "winner": end.digest}]
    assert [e.digest for e in found if (e.role, e.split) == ("finalist", "test")] == [end.digest]
    # 3. every view says where it comes from
    best, status = results.best(), results.status()
    assert best["polished"]["from"] == origin.number
    assert best["digest"] == end.digest
    assert best["choice"]["finalists"] == TRIALS + 1
    named = f"trial {end.number} (polished from trial {origin.number})"
    assert named.lower() in best["verdict"]["text"].lower()
    [shown] = status["polish"]
    assert (shown["trial"], shown["accepted"]) == (origin.number, True)
    write_report(study, tmp_path / "report.html")
    assert f"polished from trial {origin.number}" in (tmp_path / "report.html").read_text()
    assert f"Polish of trial {origin.number}: 4 steps" in (tmp_path / "report.html").read_text()
    # 4. the search knows nothing of it, and its budget neither
    assert len(own) == status["trials"] == TRIALS
    assert status["items_asked"] == TRIALS * 30
    assert shown["items"] == 4 * 3 * 24 + 3 * 6
    # 5. it can be exported
    config = load_campaign(folder / "campaign.yaml")
    export_trial(config, study, None, tmp_path / "out", "recipe", out, anyway=True)


@pytest.mark.slow
def test_a_killed_polish_goes_on_as_if_nothing_had_happened(polished, monkeypatch, tmp_path):
    folder, out = polished
    expected = facts(out), study_of(out).polished()
    other = tmp_path / "killed"
    found = evaluations(out)
    before = len({(e.digest, e.split) for e in found if e.split == "search" and not e.name}) + sum(
        e.split in ("search", "select") and e.role in ("parent", "baseline") for e in found
    )
    for jobs in (before + 4, 1, 2, 4):  # in the descent, again, and again, and after it
        crash(folder, other, monkeypatch, at=jobs)
    assert study_of(other).polished()[0].descent.step > 0
    run(folder, other)
    assert (facts(other), study_of(other).polished()) == expected
    run(folder, other)  # nothing is polished twice
    assert (facts(other), study_of(other).polished()) == expected


@pytest.mark.slow
def test_an_end_that_is_not_better_on_select_is_not_accepted(tiny_folder, monkeypatch):
    """Right is what the base chooses, but the loss wants what an expert does."""
    choose_as(tiny_folder, answer="base", wrong="math")
    monkeypatch.setattr(
        surrogate_losses, "_right_choices", lambda task, document, count: (document["wrong"],)
    )
    save(tiny_folder, initial=["base"])
    out = run(tiny_folder)
    study = study_of(out)
    [record] = study.polished()
    [end] = [e for e in evaluations(out) if e.role == "polished"]
    origin = next(e for e in evaluations(out) if e.number == record.trial)
    assert record.descent.best_step > 0, "the wrong loss must fall"
    assert study.note("concluded")["winner"] == origin.digest
    assert "polished" not in Results(study).best()
    assert Results(study).status()["polish"][0]["accepted"] is False
    assert [e.split for e in evaluations(out) if e.digest == end.digest] == ["search", "select"]


@pytest.mark.slow
def test_a_polish_that_fails_leaves_the_winner_of_the_search(tiny_folder, monkeypatch):
    def fails(self, *args):
        raise CandidateError("a document's loss came out as nan")

    monkeypatch.setattr(Worker, "losses", fails)
    save(tiny_folder)
    out = run(tiny_folder)
    study = study_of(out)
    assert study.polished()[0].descent.done == "a document's loss came out as nan"
    winner = study.note("concluded")["winner"]
    assert winner in {e.digest for e in evaluations(out) if e.optimizers_own}


REFUSALS = {
    "method": (
        {"space": {"weights": {"method": "twin", "genes": {"weight": [0, 1]}}}},
        "twin has no gradient",
    ),
    "genes": (
        {"space": {"weights": {"method": "ties", "genes": {"density": [0.2, 1]}}}},
        "no gene has a gradient; search weights, lambda or what else ties is smooth in",
    ),
    "path": (
        {"space": {"path": {"kind": "layer_swap", "outer": "lang", "inner": "math"}}},
        "a path has no gradient",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_polished_is_refused_before_any_work(case, tiny_folder):
    sections, message = REFUSALS[case]
    save(tiny_folder, initial=None, **sections)
    with pytest.raises(InputError) as refused:
        prepare(load_campaign(tiny_folder / "campaign.yaml"))
    assert str(refused.value).startswith("polish: ")
    assert message in str(refused.value)


def test_several_goals_are_refused_by_number(tiny_folder):
    fitness = tiny.campaign_data()["fitness"]
    tiny.save_task(tiny_folder / "tasks", name="other")
    goals = {"kind": "pareto", "of": ["pick", "other"]}
    tasks = [*fitness["tasks"], {"task": "other"}]
    save(tiny_folder, fitness={**fitness, "tasks": tasks, "objective": goals})
    with pytest.raises(InputError, match=r"polish: .* has 2 goals; leave polish out"):
        prepare(load_campaign(tiny_folder / "campaign.yaml"))


def test_stages_without_weights_have_nothing_to_polish():
    path = {"path": {"kind": "layer_swap", "outer": "lang", "inner": "math"}}
    stages = [{"name": "path", "space": path}]
    data = tiny.campaign_data(polish={}, stages=stages)
    del data["space"]
    with pytest.raises(InputError, match="polish: no stage searches weights"):
        parse_campaign(data, "file.yaml")


@pytest.mark.slow
def test_a_stage_of_weights_is_polished_and_its_end_is_what_the_next_one_builds_on(tiny_folder):
    choose_as(tiny_folder, answer="math")
    path = {"kind": "indicator", "a": "blend", "others": ["math"], "repeats": 2}
    stages = [
        {"name": "blend", "space": tiny.campaign_data()["space"], "initial": ["base"]},
        {"name": "flow", "space": {"path": path}, "optimizer": {"kind": "random"}},
    ]
    save(tiny_folder, stages=stages, initial=None)
    file = tiny_folder / "campaign.yaml"
    data = yaml.safe_load(file.read_text())
    del data["space"]
    file.write_text(yaml.safe_dump(data))
    found = CliRunner().invoke(app, ["search", str(file), "--out", str(tiny_folder / "run")])
    assert found.exit_code == 0, found.output
    first, second = (open_run(tiny_folder / "run" / name)[1] for name in ("blend", "flow"))
    best = Results(first).best()
    assert best["polished"]["from"] is not None
    blend = next(e for e in second.evaluations() if (e.name, e.split) == ("blend", "search"))
    assert blend.value == best["scores"]["search"]["mean"]
    assert second.polished() == []
    assert first.note("test_opened") is None
