"""An export is compared with the weights that were scored: the same, or by how much and why."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny
import torch
from running import run
from safetensors.torch import load_file

from evomerge.export.many_trials import export_many
from evomerge.export.trial import export_trial
from evomerge.export.weights_check import compare_with_scored
from evomerge.materialize.disk.weight_record import record_weights
from evomerge.recipe import Recipe
from evomerge.study.run_folder import open_run, run_folder

SPACE = "space.weights={method: iso_cts, genes: {common: [0.2, 0.8], lambda: [0, 1]}}"


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def finished(request, tmp_path_factory):
    """A run of a method of decompositions, scored in a dtype as wide as the weights or narrower."""
    folder = tmp_path_factory.mktemp("run")
    tiny.save_campaign(folder)
    settings = [SPACE, "budget.trials=3", f"dtype.compute={request.param}"]
    return run(folder, folder / "run", settings)


def finalists(study):
    """The candidates on select; one that is a baseline was measured as that."""
    roles = ("finalist", "baseline")
    return [e for e in study.evaluations() if e.role in roles and e.split == "select"]


def told(finished, to, export=export_trial, chosen=None):
    notes, warnings = [], []
    config, study = open_run(finished)
    anyway = {} if chosen else {"anyway": True}
    export(config, study, chosen, to, note=notes.append, warn=warnings.append, **anyway)
    return notes, warnings


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_export_says_that_its_weights_are_those_that_were_scored(finished, threads, tmp_path):
    """Whatever its threads, and without the run's statistics."""
    torch.set_num_threads(threads)
    notes, warnings = told(finished, tmp_path / "out")
    [note] = notes
    assert "the weights are those that were scored, to the bit (digest" in note
    assert not warnings


def test_finalists_and_baselines_have_a_record_of_all_tensors_of_the_checkpoint(finished, tmp_path):
    config, study = open_run(finished)
    everyone = study.evaluations()
    recorded = {(e.role, e.split) for e in everyone if e.weights}
    assert recorded == {("finalist", "select"), ("baseline", "select")}
    assert all(e.weights for e in finalists(study))
    out = export_trial(config, study, None, tmp_path / "out", anyway=True)
    for one in finalists(study):
        assert one.weights["tensors"].keys() == load_file(out / "model.safetensors").keys()
    assert {"iso_cts": 2} in [one.weights["methods"] for one in finalists(study)]


def test_another_records_size_and_reason_are_told(finished, tmp_path):
    config, study = open_run(finished)
    out = export_trial(config, study, None, tmp_path / "out", anyway=True)
    recipe = Recipe.from_json(json.loads((out / "recipe.json").read_text()))
    [own] = [e.weights for e in finalists(study) if e.digest == recipe.digest]
    assert compare_with_scored(out, recipe, own)[0]
    name = "model.layers.0.mlp.up_proj.weight"
    other = {**own["tensors"], name: own["tensors"]["model.layers.1.mlp.up_proj.weight"]}
    scored = {**own, "tensors": other, "digest": "another"}
    for facts, reason in [
        ({"methods": {}}, "because iso_cts is not what it was: its decompositions no longer"),
        ({"device": "NVIDIA H200"}, "device is cpu, there NVIDIA H200"),
        ({"processor": "another"}, "singular vectors"),
        ({"statistics": False}, "please report it"),
    ]:
        same, text = compare_with_scored(out, recipe, {**scored, **facts})
        assert not same
        assert text.startswith("1 of 21 tensors are not those that were scored; the largest")
        assert reason in text


def test_a_finalist_scored_before_records_were_kept_is_doubted(finished, tmp_path, monkeypatch):
    config, study = open_run(finished)
    bare = [replace(evaluation, weights=None) for evaluation in study.evaluations()]
    monkeypatch.setattr(study, "evaluations", lambda: bare)
    warnings = []
    export_trial(config, study, None, tmp_path / "out", warn=warnings.append, anyway=True)
    [warning] = warnings
    assert "no record of the weights that it scored" in warning
    assert "iso_cts is not what it was" in warning


def test_the_whole_checkpoint_is_recorded_however_it_is_sharded(finished, tmp_path):
    config, study = open_run(finished)
    one = export_trial(config, study, None, tmp_path / "one", anyway=True)
    many = export_trial(config, study, None, tmp_path / "many", shard_bytes=10_000, anyway=True)
    recipe = Recipe.from_json(json.loads((one / "recipe.json").read_text()))
    digests = {record_weights(at, recipe, statistics=False).digest for at in (one, many)}
    assert len(digests) == 1


def test_the_command_line_tells_it(finished, tmp_path):
    from typer.testing import CliRunner

    import evomerge.cli  # noqa: F401 (its commands)
    from evomerge.cli.shared import app

    done = CliRunner().invoke(
        app, ["export", str(run_folder(finished)), "--anyway", "--to", str(tmp_path / "o")]
    )
    assert done.exit_code == 0, done.output
    assert "the weights are those that were scored" in " ".join(done.output.split())


def test_every_member_of_an_archive_is_compared(tmp_path):
    tiny.save_campaign(tmp_path)
    settings = [SPACE, "budget.trials=4", "optimizer={kind: m2n2}"]
    finished = run(tmp_path, tmp_path / "run", settings)
    notes, warnings = told(finished, tmp_path / "all", export_many, "archive")
    assert notes
    assert all("to the bit" in note for note in notes)
    assert not warnings
