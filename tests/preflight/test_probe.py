"""One candidate tried with its own weights, or estimated from the configs alone."""

from __future__ import annotations

import io
import multiprocessing
import os

import pytest
import tiny
import torch
import yaml
from configs import save_configs, small_config
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from evomerge.campaign.setup import prepare
from evomerge.cli import app
from evomerge.config import load_campaign
from evomerge.preflight import estimate_scoring, probe
from evomerge.preflight.forecast import foresee
from evomerge.preflight.probe import ProbeFailed, probe_here
from evomerge.preflight.problems import problems
from evomerge.preflight.show import preflight_table


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """The same campaign with weights, in `real`, and without, in `configs`."""
    folder = tmp_path_factory.mktemp("family")
    tiny.save_family(folder / "real" / "models", dtype=torch.bfloat16, num_hidden_layers=6)
    tiny.save_task(folder / "real" / "tasks")
    tiny.save_campaign(folder / "real")
    save_configs(folder / "configs", small_config())
    return folder


@pytest.fixture(scope="module")
def found(family):
    """What is found of both."""
    setups = {
        name: prepare(load_campaign(family / name / "campaign.yaml"), unread=True)
        for name in ("real", "configs")
    }
    return {name: foresee(one, family, 12, probe_here) for name, one in setups.items()}


def test_without_weights_the_memory_is_that_with_them(found):
    ours, theirs = found["configs"].memory, found["real"].memory
    assert (ours.model, ours.mapped) == (theirs.model, theirs.mapped)
    assert ours.scoring == pytest.approx(theirs.scoring, abs=3_000_000)
    assert ours.own == pytest.approx(theirs.own, rel=0.2)


def test_the_candidate_is_real_where_there_are_weights(found):
    assert found["real"].probe.real
    assert found["real"].probe.asked == 30  # all of them: they are quick
    assert not found["configs"].probe.real
    for one in found.values():
        assert 0 < one.probe.merge < 10
        assert 0 < one.item_seconds < 1


def test_a_base_that_cannot_be_scored_is_found_out(family, tmp_path):
    tiny.save_family(tmp_path / "models", dtype=torch.float32)
    tiny.save_task(tmp_path / "tasks")
    path = tiny.save_campaign(tmp_path)
    file = tmp_path / "models" / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"][:] = 3e38  # finite, and no logit is
    save_file(tensors, file, {"format": "pt"})
    setup = prepare(load_campaign(path))
    found = foresee(setup, tmp_path, 12, probe_here)
    assert isinstance(found.found, ProbeFailed)
    [reason] = problems(setup, found, tmp_path)
    assert "the base model itself cannot be scored: non-finite" in reason


def served_elsewhere(folder, server, to):
    """The setup of the folder's campaign, scored by a server."""
    engine = {
        "kind": "api",
        "url": server.address("v1/completions"),
        "checkpoint": str(to / "candidate"),
        "reload": server.address("reload"),
    }
    text = f"fitness.engine={yaml.safe_dump(engine, default_flow_style=True, width=1000)}"
    return prepare(load_campaign(folder / "campaign.yaml", [text]), unread=True)


def test_scoring_elsewhere_is_not_estimated(family, server, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate_scoring, "ScoringEstimate", lambda *_: pytest.fail("estimated"))
    setup = served_elsewhere(family / "configs", server, tmp_path)
    found = foresee(setup, tmp_path, 12, probe_here)
    assert (found.memory.model, found.memory.scoring) == (0, 0)
    assert found.memory.libraries > 0
    assert found.probe.merge > 0
    assert server.loaded == []
    console = Console(width=200, file=io.StringIO())
    console.print(preflight_table(setup, found))
    text = console.file.getvalue()
    assert "scoring happens elsewhere, in memory of its own, in seconds not known here" in text
    assert "and those of scoring" in text
    assert "hours for the budget" not in text
    assert "nan" not in text


def test_candidates_are_tried_on_the_server_where_there_are_weights(family, server, tmp_path):
    setup = served_elsewhere(family / "real", server, tmp_path)
    found = foresee(setup, tmp_path, 12, probe_here)
    assert (found.memory.model, found.memory.scoring) == (0, 0)
    assert set(server.loaded) == {str(tmp_path / "candidate")}
    assert found.item_seconds > 0
    assert found.hours(found.work) > 0


def test_nothing_is_said_of_workers_of_which_nothing_is_known(family, server, tmp_path):
    setup = served_elsewhere(family / "real", server, tmp_path)
    found = foresee(setup, tmp_path, 12, None)
    assert found.memory.own == 0
    console = Console(width=200, file=io.StringIO())
    console.print(preflight_table(setup, found))
    assert "workers that fit" not in console.file.getvalue()


def killed(order):
    os._exit(9)


def test_a_worker_that_is_killed_is_a_reason(monkeypatch):
    monkeypatch.setattr(probe, "probe_here", killed)
    monkeypatch.setattr(probe, "_is_harmless", lambda asked: False)
    forked = multiprocessing.get_context("fork")
    monkeypatch.setattr(probe.multiprocessing, "get_context", lambda _: forked)
    found = probe.probe(None)
    assert found.fatal
    assert "want of memory" in found.reason


def check(folder, *options, code=0):
    command = ["check", str(folder / "campaign.yaml"), *options]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


@pytest.mark.slow
def test_check_prints_what_it_found_and_what_it_expects(family):
    text = check(family / "configs").stdout
    for row in (
        "LlamaForCausalLM, 6 layers",
        "config only",
        "memory per worker",
        "models, mapped",
        "workers that fit",
        "seconds per candidate",
        "estimated from shapes",
        "hours for the budget",
        "37 merges, 834 items",
        "an export",
        "few-shot only",
        "no weights are here",
    ):
        assert row in text


def test_check_tells_what_it_can_without_trying(family):
    text = check(family / "real", "--no-measure").stdout
    assert "at least" in text
    assert "seconds per candidate" not in text


def test_check_ends_with_two_and_the_reasons_when_nothing_fits(family, monkeypatch):
    from evomerge.preflight import forecast, machine

    monkeypatch.setattr(forecast, "this_machine", lambda: machine.Machine(1000))
    result = check(family / "real", "--no-measure", "--set", "budget.hours=1", code=2)
    assert "workers that fit" in result.stdout
    assert "error: workers.count: 1 of at least" in result.stderr
