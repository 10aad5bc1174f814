"""Defaults of a search: on where they pay, never against the campaign file, and kept by studies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
from command_line import evomerge
from silent import Silent

from evomerge.campaign.defaults import (
    DESCENTS,
    LOSS,
    NEAR,
    PATIENCE,
    RUNGS,
    SCREEN,
    descent_for,
    with_defaults,
)
from evomerge.campaign.descents import INITIAL, Descents, cost_of
from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.common.errors import CandidateError
from evomerge.config import DescentConfig, load_campaign
from evomerge.study.run_folder import open_run
from evomerge.workers.worker import Worker

LARGE = {"trials": 2000}
BY_HAND = ["initial=[]", "fitness.rungs=[all]", "optimizer.screen=1", "optimizer.descents=0"]


def setup_of(folder, *overrides, out=None, **sections):
    tiny.save_campaign(folder, **{"budget": LARGE, **sections})
    config = load_campaign(folder / "campaign.yaml", overrides)
    return with_defaults(prepare(config), out or folder / "run")


def test_a_plain_file_begins_with_a_gradient_and_says_what_it_costs_and_how_to_turn_it_off(
    tiny_folder,
):
    setup = setup_of(tiny_folder)
    assert setup.by_default.keys() == {INITIAL, LOSS, NEAR, PATIENCE, DESCENTS, SCREEN}
    descent = descent_for(sum(setup.sizes("search").values()))
    assert setup.config.initial[0].gradient == descent
    assert setup.config.optimizer.options["descents"] == setup.by_default[DESCENTS]
    cost = cost_of(descent, setup.sizes("search"))
    assert f"{cost:,} items" in setup.said
    assert f"{setup.by_default[DESCENTS]} short descents" in setup.said
    assert "optimizer.plain: true" in setup.said


@pytest.mark.parametrize(
    ("items", "steps", "batch", "rate"),
    [(30, 72, 1, 0.05), (240, 36, 6, 0.035), (450, 68, 6, 0.035), (9000, 72, 6, 0.035)],
)
def test_a_gradient_start_has_small_batches_and_costs_a_few_items_for_each(
    items, steps, batch, rate
):
    descent = descent_for(items)
    assert (descent.steps, descent.batch, descent.rate) == (steps, batch, rate)
    assert descent.average > 0


def test_a_gradient_start_that_a_study_has_noted_without_an_average_ends_at_its_last_step():
    noted = {"steps": 30, "batch": 12, "rate": 0.05, "held_back": 0, "check": 0}
    assert DescentConfig.model_validate(noted).average == 0


def test_without_a_gradient_there_are_rungs_where_there_are_items_enough(tiny_folder):
    tiny.save_task(tiny_folder / "tasks", items=500)
    begun = setup_of(tiny_folder)
    assert RUNGS not in begun.by_default
    assert begun.config.fitness.surrogate_loss.power == begun.by_default[LOSS]["power"]
    setup = setup_of(tiny_folder, "initial=[]")
    assert "no gradient" not in setup.said
    assert DESCENTS not in setup.by_default
    first, *_, last = setup.config.fitness.rungs
    assert (first, last) == (setup.first_rung, "all")
    assert setup.by_default[RUNGS] == setup.config.fitness.rungs


@pytest.mark.parametrize("by_hand", BY_HAND)
def test_what_the_file_says_by_hand_stays(tiny_folder, by_hand):
    key = by_hand.partition("=")[0]
    setup = setup_of(tiny_folder, by_hand)
    assert setup.by_default
    assert key not in setup.by_default


def test_descents_by_hand_follow_the_loss_that_the_file_says(tiny_folder):
    by_hand = setup_of(tiny_folder, "initial=[{gradient: {steps: 2}}]")
    assert by_hand.config.fitness.surrogate_loss.power == 0
    said = setup_of(tiny_folder, "fitness.surrogate_loss={kind: supervised}")
    assert said.by_default[INITIAL]
    assert said.config.fitness.surrogate_loss.power == 0


@pytest.mark.parametrize("off", [BY_HAND, ["optimizer.plain=true"]])
def test_all_of_it_can_be_turned_off(tiny_folder, off):
    bare = load_campaign(setup_of(tiny_folder) and tiny_folder / "campaign.yaml", off)
    setup = with_defaults(prepare(bare), tiny_folder / "run")
    assert (setup.config, setup.by_default, setup.said) == (bare, {}, "")


def test_a_small_budget_is_not_spent_on_descents(tiny_folder):
    setup = setup_of(tiny_folder, budget={"trials": 20})
    assert setup.by_default == {}
    assert "of the budget's 600" in setup.said


def test_where_there_is_no_gradient_the_reason_is_said(tiny_folder):
    space = {"weights": {"method": "twin", "genes": {"weight": [0, 1]}}}
    setup = setup_of(tiny_folder, space=space)
    assert INITIAL not in setup.by_default
    assert "no gradient start: twin has no gradient" in setup.said


def test_there_is_no_gradient_start_where_a_document_has_no_right_answer(tiny_folder):
    documents = tiny_folder / "tasks" / "pick.jsonl"
    documents.write_text(documents.read_text().replace('"answer": 3', '"answer": 7'))
    said = setup_of(tiny_folder).said
    assert "no gradient start: pick: item" in said
    assert "has no right choice" in said


def test_a_study_that_was_begun_without_defaults_keeps_its_identity(tiny_folder):
    tiny.save_campaign(tiny_folder, budget={"trials": 1})
    config = load_campaign(tiny_folder / "campaign.yaml")
    begun = prepare(config)
    with open_campaign(begun, tiny_folder / "run", Silent()) as campaign:
        campaign.run(None)
    setup = setup_of(tiny_folder)
    assert setup.identity == begun.identity
    assert (setup.by_default, setup.said) == ({}, "")


def test_a_study_keeps_the_defaults_that_it_was_begun_with(tiny_folder, monkeypatch):
    monkeypatch.setattr(Descents, "run", lambda self, deadline: False)
    out = tiny_folder / "run"
    first = setup_of(tiny_folder)
    with open_campaign(first, out, Silent()):
        pass
    again = setup_of(tiny_folder, budget={"trials": 20})  # too small to begin with any
    assert again.identity == first.identity
    assert again.by_default == first.by_default
    assert again.config.fitness.surrogate_loss.power > 0
    _, study = open_run(out)
    with study:
        assert study.campaign["initial"] == first.by_default[INITIAL]


def test_check_says_what_is_on_by_default(tiny_folder):
    tiny.save_task(tiny_folder / "tasks", items=500)
    tiny.save_campaign(tiny_folder, budget=LARGE)
    told = evomerge("check", tiny_folder / "campaign.yaml", "--no-measure").stdout
    assert "by default" in told
    told = " ".join(told.replace("│", "").split())
    assert "gradient start from the best that is known" in told
    assert "optimizer.descents: 0" in told


def test_a_default_descent_that_fails_does_not_end_the_campaign(tiny_folder, monkeypatch):
    def fails(self, *args, **options):
        raise CandidateError("a document's loss came out as nan")

    monkeypatch.setattr(Worker, "gradient", fails)
    setup = setup_of(tiny_folder)
    budget = setup.config.budget.model_copy(update={"trials": 2})
    short = setup.with_search(setup.config.model_copy(update={"budget": budget}))
    out = tiny_folder / "run"
    with open_campaign(replace(short, by_default=setup.by_default), out, Silent()) as campaign:
        campaign.run(None)
    _, study = open_run(out)
    with study:
        assert "nan" in study.descents()[0].done
