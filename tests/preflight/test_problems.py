"""What `evomerge check` refuses, and what it notes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import chains
import pytest
import tiny
from configs import save_configs, small_config
from forecasts import FOUND, told, with_room
from rich.console import Console

from evomerge.campaign.setup import prepare
from evomerge.campaign.stages import check_later, stages_of
from evomerge.common import accelerator
from evomerge.config import load_campaign
from evomerge.preflight import forecast as forecasts
from evomerge.preflight import problems
from evomerge.preflight.forecast import foresee
from evomerge.preflight.probe import ProbeFailed, probe_here
from evomerge.preflight.show import preflight_table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scoring": 3 * 10**9},
            "none fits; most of it goes to scoring: lower fitness",
        ),
        ({"merging": 3 * 10**9}, "most of it goes to merging: choose a method"),
        ({"libraries": 600_000_000}, "workers.count: 2 of 610 MB each are asked for, and this"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_workers_without_room_are_refused(unread, tmp_path, monkeypatch, changes, message):
    with_room(monkeypatch, 10**9)
    workers = unread.config.workers.model_copy(update={"count": 2})
    setup = replace(unread, config=unread.config.model_copy(update={"workers": workers}))
    found = foresee(setup, tmp_path, 12, lambda spec: replace(FOUND, **changes))
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
    found = foresee(setup, tmp_path, 12, lambda spec: replace(FOUND, scoring=3 * 10**9))
    assert told(setup, found, tmp_path).endswith(f"scoring: {way}")


def noted(setup, found):
    """What is noted of all but the number of trials, which is small in tests."""
    return [note for note in problems.notes(setup, found) if "trials are few" not in note]


@pytest.mark.parametrize("genes", [2, 6, 101])
def test_trials_are_few_below_the_rule_of_the_how_to(unread, tmp_path, genes):
    rule = (Path(__file__).parents[2] / "docs/how-to/how-many-trials.md").read_text()
    assert "Begin with **twenty trials for each gene**" in rule
    assert problems.TRIALS_A_GENE == 20
    space = SimpleNamespace(dimension=genes)

    def told_with(trials):
        budget = unread.config.budget.model_copy(update={"trials": trials})
        setup = replace(
            unread, config=unread.config.model_copy(update={"budget": budget}), space=space
        )
        return list(problems._few_trials("budget", setup))

    assert told_with(20 * genes) == []
    [note] = told_with(20 * genes - 1)
    assert f"{20 * genes - 1:,} trials are few for {genes} genes" in note
    assert f"20 a gene, {20 * genes:,}" in note
    assert ("begin with a gradient" in note) == (genes > 100)


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (565_344, "565 kB"),
        (999_999, "1.00 MB"),
        (40_600_000, "40.6 MB"),
        (72.23e9, "72.2 GB"),
        (14.2e12, "14200 GB"),
    ],
)
def test_a_size_has_the_unit_in_which_it_is_read(nbytes, shown):
    assert problems.size_of(nbytes) == shown


def test_gpus_that_are_not_here_are_refused(unread, tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "available", lambda: None)
    workers = unread.config.workers.model_copy(
        update={"kind": "ray", "count": 2, "gpus_per_worker": 1.0}
    )
    setup = replace(unread, config=unread.config.model_copy(update={"workers": workers}))
    found = foresee(setup, tmp_path, 12, probe_here)
    assert "2 × 1 GPUs are asked for, and this machine has 0" in told(setup, found, tmp_path)
    assert any("on cuda, which this machine has not" in n for n in problems.notes(setup, found))


def test_hours_in_which_nothing_is_tried_are_refused(unread, tmp_path):
    def hours(limit):
        budget = unread.config.budget.model_copy(update={"hours": limit})
        setup = replace(unread, config=unread.config.model_copy(update={"budget": budget}))
        found = foresee(setup, tmp_path, 12, lambda spec: FOUND)
        return told(setup, found, tmp_path), noted(setup, found)

    assert "in 0.01 hours there is no trial" in hours(0.01)[0]
    refused, said = hours(0.3)
    assert refused == ""
    assert any(note.startswith("budget.hours: 0.3 are enough for some") for note in said)
    refused, [few] = hours(100)
    assert refused == ""
    assert few.startswith("fitness.splits: test has 18 documents, too few to be sure of any lead")


SPACE = tiny.campaign_data()["space"]


def staged(tmp_path, stages):
    """The set-ups of a campaign of stages, of configs: of the first, and of all by name."""
    space = stages[0]["space"]
    config = load_campaign(save_configs(tmp_path, small_config(), stages=stages, space=space))
    found = stages_of(config, tmp_path / "run")
    setup = prepare(found[0].config, unread=True)
    return setup, check_later(setup, found)


def test_a_stages_winner_needs_room_in_the_runs_folder(tmp_path, monkeypatch):
    setup, stages = staged(tmp_path, [{"name": n, "space": SPACE} for n in ("blend", "again")])
    found = foresee(setup, tmp_path, 12, None)
    assert list(problems.problems(setup, found, tmp_path, stages)) == []
    for module in (forecasts, problems):
        monkeypatch.setattr(module, "free_disk", lambda _: 1000)
    refused = problems.problems(setup, found, tmp_path, stages)
    assert any("stages: a stage's winner is written into" in text for text in refused)
    found = foresee(setup, tmp_path, 12, None)
    assert any("an export" in note for note in problems.notes(setup, found))


def test_trials_are_counted_against_the_genes_of_each_stage_by_name(tmp_path):
    found_path = {
        "weights": {"method": "linear", "genes": {"weight": [0, 1]}},
        "path": {"kind": "given", "layers": "way"},
    }
    path = {"path": {"kind": "layer_swap", "outer": "math", "inner": "lang"}}
    many = [
        {"name": "way", "space": path, "trials": 500},
        {"name": "blend", "space": found_path, "trials": 30},
        {"name": "again", "space": SPACE, "trials": 5000},
    ]
    setup, searches = staged(tmp_path, many)
    found = foresee(setup, tmp_path, 12, None)
    few = [note for note in problems.notes(setup, found, searches) if "trials are few" in note]
    # the path is not found yet: as many layers as the base has are the best guess
    genes = searches["blend"].space.dimension
    assert genes > len(setup.config.models.experts)
    (note,) = few
    assert note.startswith(f"stages.blend: 30 trials are few for {genes} genes")
    shown = Console(width=200)
    with shown.capture() as text:
        shown.print(preflight_table(setup, found, searches))
    assert "stage again" in text.get()
    assert "5000 trials" in text.get()


def test_models_larger_than_the_memory_are_told(unread, tmp_path, monkeypatch):
    with_room(monkeypatch, 401_000_000)
    small = replace(FOUND, libraries=0, merging=0)
    found = foresee(unread, tmp_path, 12, lambda spec: small)
    assert "stay in memory" not in " ".join(noted(unread, found))
    with_room(monkeypatch, found.memory.own + found.memory.mapped - 1)
    assert "do not stay in memory" in " ".join(problems.notes(unread, found))


def test_a_base_that_cannot_be_scored_is_a_reason_and_an_estimate_that_fails_is_not(
    unread, tmp_path
):
    found = foresee(unread, tmp_path, 12, lambda spec: ProbeFailed("it cannot", fatal=True))
    assert told(unread, found, tmp_path) == "it cannot"
    found = foresee(unread, tmp_path, 12, lambda spec: ProbeFailed("no way", fatal=False))
    assert told(unread, found, tmp_path) == ""
    assert "no way" in next(problems.notes(unread, found))


@pytest.mark.parametrize(("kind", "noted"), [("generate_until", False), ("multiple_choice", True)])
def test_vllm_is_for_answers_that_are_generated(unread, tmp_path, kind, noted):
    found = foresee(unread, tmp_path, 12, lambda spec: FOUND)
    engine = unread.config.fitness.engine.model_copy(update={"kind": "vllm"})
    fitness = unread.config.fitness.model_copy(update={"engine": engine})
    tasks = tuple(replace(task, kind=kind) for task in unread.tasks)
    config = unread.config.model_copy(update={"fitness": fitness})
    notes = problems.notes(replace(unread, config=config, tasks=tasks), found)
    assert any("no task generates answers" in note for note in notes) == noted


@pytest.mark.parametrize(("tokens", "warned"), [(12, True), (40, False)])
def test_parents_whose_answers_the_limit_cuts_off_are_told(tmp_path, tokens, warned):
    path = chains.save_campaign(tmp_path, {"long": 20, "known": 20}, tokens)
    setup = prepare(load_campaign(path))
    found = foresee(setup, tmp_path, 2, probe_here)
    told = [note for note in problems.notes(setup, found) if "cuts answers off" in note]
    assert len(told) == warned
    for note in told:
        assert note.startswith("fitness.tasks: think: ")
        assert "base " in note
        assert "knows " in note
        assert "brief" not in note.partition(")")[0]
    cut, of = found.probe.cut["knows"]["think"]
    assert of == len(setup.items["search"]["think"])
    assert (cut > 0) == warned
