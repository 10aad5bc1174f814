"""What a forecast says, and what it refuses."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace

import pytest
import tiny
import torch
from configs import save_configs, seven_billion, small_config
from typer.testing import CliRunner

from evomerge.campaign.setup import prepare
from evomerge.cli import app
from evomerge.config import load_campaign
from evomerge.preflight import forecast as forecasts
from evomerge.preflight import machine, observe, problems
from evomerge.preflight.depths import depths_of
from evomerge.preflight.forecast import foresee
from evomerge.preflight.lines import Line
from evomerge.preflight.machine import Machine
from evomerge.preflight.observe import Probe, ProbeFailed, observed
from evomerge.preflight.work import work_of
from evomerge.study.run_folder import open_run

FOUND = Probe(
    libraries=400_000_000,
    merging=10_000_000,
    statistics=0,
    scoring=Line(1000.0, 100.0),
    merge=2.0,
    once=100.0,
    score=Line(0.5, 0.25),
    asked=30,
    real=False,
)


def with_room(monkeypatch, memory, gpus=()):
    for module in (forecasts, problems):
        monkeypatch.setattr(module, "this_machine", lambda: Machine(memory, gpus))


def told(setup, forecast, tmp_path):
    return " ".join(problems.problems(setup, forecast, tmp_path))


@pytest.mark.parametrize("config", seven_billion(), ids=lambda config: config.model_type)
def test_three_models_of_seven_billion_parameters_from_their_configs(config, tmp_path):
    path = save_configs(tmp_path, config, tokenizer=False)
    setup = prepare(load_campaign(path), unread=True)
    found = foresee(setup, tmp_path, 12, None)
    parameters = {"llama": 6_738_415_616, "mistral": 7_241_732_096}[config.model_type]
    assert found.memory.model == 4 * parameters  # scored in float32 on the CPU
    assert found.memory.mapped == 3 * 2 * parameters
    assert found.export == 2 * parameters


def test_what_is_observed_becomes_memory_seconds_and_hours(unread, tmp_path, monkeypatch):
    with_room(monkeypatch, 10**9)
    found = foresee(unread, tmp_path, 12, lambda order: FOUND)
    model = found.memory.model
    assert found.memory.scoring == 1000 + 6 * 100
    assert found.memory.own == 400_000_000 + model + 10_000_000, "scoring takes less than merging"
    assert found.fit == 10**9 // found.memory.own == 2
    assert found.item_seconds == 0.5 + 6 * 0.25
    work = found.work
    assert found.hours(work) == pytest.approx((100 + 2 * work.merges + 2 * work.items) / 3600)
    assert told(unread, found, tmp_path) == ""


def test_the_work_is_that_of_a_real_campaign(tmp_path):
    campaign = tiny.save_campaign(tmp_path, optimizer={"kind": "random"}, budget={"trials": 6})
    command = ["search", str(campaign), "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(app, command).exit_code == 0
    done = [e for e in open_run(tmp_path / "run")[1].evaluations() if e.seconds]
    work = work_of(prepare(load_campaign(campaign)), 6)
    assert (work.merges, work.items) == (len(done), sum(e.n for e in done))
    assert work.trials == 6


def test_a_budget_of_items_bounds_the_work(unread):
    config = unread.config
    whole = work_of(unread, 12)
    budget = config.budget.model_copy(update={"items": 60})
    some = work_of(replace(unread, config=config.model_copy(update={"budget": budget})), 12)
    assert (whole.trials, some.trials) == (12, 2)
    finalists = 3 - 2  # fewer than are chosen
    assert whole.items - some.items == 10 * 30 + finalists * 12


def test_paths_of_other_depths_take_time_and_memory_for_their_layers(tmp_path):
    found = {}
    for kind in ("none", "indicator"):
        space = {"path": {"kind": "indicator", "a": "math", "others": ["lang"]}}
        extra = {"space": space} if kind == "indicator" else {}
        folder = save_configs(tmp_path, small_config(), **extra)
        setup = prepare(load_campaign(folder), unread=True)
        found[kind] = depths_of(setup), foresee(setup, tmp_path, 12, None).memory.model
    plain, flow = found["none"][0], found["indicator"][0]
    assert (plain.mean, plain.deepest, set(plain.held.values())) == (6, 6, {1})
    assert flow.deepest > 6
    assert max(flow.held.values()) == 2  # of two models
    layer = (found["none"][1] - 4 * (2 * 64 * 32 + 32)) / 6
    more = sum(flow.held.values()) - 6
    assert found["indicator"][1] - found["none"][1] == pytest.approx(more * layer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scoring": Line(3e9, 0.0)},
            "none fits; most of it goes to scoring: lower fitness",
        ),
        ({"merging": 3 * 10**9}, "most of it goes to merging: choose a method"),
        ({"libraries": 600_000_000}, "workers.count: 2 of 0.61 GB each are asked for, and this"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_workers_without_room_are_refused(unread, tmp_path, monkeypatch, changes, message):
    with_room(monkeypatch, 10**9)
    workers = unread.config.workers.model_copy(update={"count": 2})
    setup = replace(unread, config=unread.config.model_copy(update={"workers": workers}))
    found = foresee(setup, tmp_path, 12, lambda order: replace(FOUND, **changes))
    assert message in told(setup, found, tmp_path)
    far = workers.model_copy(update={"address": "ray://elsewhere"})
    setup = replace(setup, config=setup.config.model_copy(update={"workers": far}))
    assert told(setup, found, tmp_path) == ""


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("multiple_choice", "lower fitness.engine.batch_tokens"),
        ("generate_until", "lower fitness.engine.batch_tokens and fitness.batch_size"),
        ("callable", "take a larger machine"),
    ],
)
def test_what_bounds_a_batch_is_the_way_out(unread, tmp_path, monkeypatch, kind, way):
    with_room(monkeypatch, 10**9)
    setup = replace(unread, tasks=tuple(replace(task, kind=kind) for task in unread.tasks))
    found = foresee(setup, tmp_path, 12, lambda order: replace(FOUND, scoring=Line(3e9, 0.0)))
    assert told(setup, found, tmp_path).endswith(f"scoring: {way}")


def test_gpus_that_are_not_here_are_refused(unread, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    workers = unread.config.workers.model_copy(
        update={"kind": "ray", "count": 2, "gpus_per_worker": 1.0}
    )
    setup = replace(unread, config=unread.config.model_copy(update={"workers": workers}))
    found = foresee(setup, tmp_path, 12, observed)
    assert "2 × 1 GPUs are asked for, and this machine has 0" in told(setup, found, tmp_path)
    assert any("CUDA, which this machine has not" in n for n in problems.notes(setup, found))


def test_hours_in_which_nothing_is_tried_are_refused(unread, tmp_path):
    def hours(limit):
        budget = unread.config.budget.model_copy(update={"hours": limit})
        setup = replace(unread, config=unread.config.model_copy(update={"budget": budget}))
        found = foresee(setup, tmp_path, 12, lambda order: FOUND)
        return told(setup, found, tmp_path), list(problems.notes(setup, found))

    assert "in 0.01 hours there is no trial" in hours(0.01)[0]
    refused, noted = hours(0.3)
    assert refused == ""
    assert any(note.startswith("budget.hours: 0.3 are enough for some") for note in noted)
    assert hours(100) == ("", [])


def test_a_stages_winner_needs_room_in_the_runs_folder(unread, tmp_path, monkeypatch):
    stages = [{"name": n, "space": tiny.campaign_data()["space"]} for n in ("blend", "again")]
    config = load_campaign(save_configs(tmp_path, small_config(), stages=stages))
    setup = replace(unread, config=config)
    found = foresee(setup, tmp_path, 12, None)
    assert told(setup, found, tmp_path) == ""
    for module in (forecasts, problems):
        monkeypatch.setattr(module, "free_disk", lambda _: 1000)
    assert "stages: a stage's winner is written into" in told(setup, found, tmp_path)
    found = foresee(setup, tmp_path, 12, None)
    assert any("an export" in note for note in problems.notes(setup, found))


def test_models_larger_than_the_memory_are_told(unread, tmp_path, monkeypatch):
    with_room(monkeypatch, 401_000_000)
    small = replace(FOUND, libraries=0, merging=0)
    found = foresee(unread, tmp_path, 12, lambda order: small)
    assert list(problems.notes(unread, found)) == []
    with_room(monkeypatch, found.memory.own + found.memory.mapped - 1)
    assert "do not stay in memory" in " ".join(problems.notes(unread, found))


def test_a_base_that_cannot_be_scored_is_a_reason_and_a_rehearsal_that_fails_is_not(
    unread, tmp_path
):
    found = foresee(unread, tmp_path, 12, lambda order: ProbeFailed("it cannot", fatal=True))
    assert told(unread, found, tmp_path) == "it cannot"
    found = foresee(unread, tmp_path, 12, lambda order: ProbeFailed("no way", fatal=False))
    assert told(unread, found, tmp_path) == ""
    assert "no way" in next(problems.notes(unread, found))


def killed(order):
    os._exit(9)


def test_a_worker_that_is_killed_is_a_reason(monkeypatch):
    monkeypatch.setattr(observe, "observed", killed)
    forked = multiprocessing.get_context("fork")
    monkeypatch.setattr(observe.multiprocessing, "get_context", lambda _: forked)
    found = observe.observe(None)
    assert found.fatal
    assert "want of memory" in found.reason


def test_free_memory_respects_the_limits_of_a_container(tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("max", "current", "stat")]
    files[0].write_text("1000000\n")
    files[1].write_text("700000\n")
    files[2].write_text("anon 5\ninactive_file 200000\n")
    monkeypatch.setattr(machine, "_GROUPS", [tuple(map(str, files))])
    assert machine.this_machine().memory == 500_000
    files[0].write_text("max\n")
    assert machine.this_machine().memory > 10**8


def test_the_peak_is_that_since_it_was_forgotten():
    machine.forget_peak()
    before = machine.usage()
    tensor = torch.ones(50_000_000)
    del tensor
    after = machine.usage()
    assert after.peak - before.peak > 190_000_000
    machine.forget_peak()
    assert machine.usage().peak < after.peak - 150_000_000
