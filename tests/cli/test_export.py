"""`evomerge export`: a folder that stock tools load and score, with its card."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest
import torch
from command_line import evomerge
from safetensors.torch import load_file


@pytest.mark.slow
def test_stock_lm_eval_on_the_export_prints_the_campaigns_score_item_for_item(done, tmp_path):
    result = evomerge("export", done / "run", "--anyway", "--to", tmp_path / "out")
    [command] = [line.strip() for line in result.stderr.splitlines() if "lm_eval --model" in line]
    command += f" --log_samples --output_path {shlex.quote(str(tmp_path / 'log'))}"
    stock = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert stock.returncode == 0, stock.stderr
    [samples] = (tmp_path / "log").rglob("samples_pick_*.jsonl")
    theirs = {s["doc_hash"]: s["acc"] for s in map(json.loads, samples.read_text().splitlines())}

    from evomerge.study.run_folder import open_run

    _, study = open_run(done / "run")
    items, digest = (
        study.items(),
        json.loads(evomerge("best", done / "run", "--json").stdout)["digest"],
    )
    ours = {}
    for evaluation in study.evaluations():
        if evaluation.digest == digest:
            ids = items[evaluation.split]["pick"]
            ours.update(zip(ids, evaluation.scores["pick"].tolist(), strict=True))
    assert len(ours) == 60
    assert ours == theirs
    [results] = (tmp_path / "log").rglob("results_*.json")
    printed = json.loads(results.read_text())["results"]["pick"]["acc,none"]
    assert printed == pytest.approx(sum(ours.values()) / 60)


def test_an_exported_folder_is_complete(done, tmp_path):
    evomerge("export", done / "run", "--anyway", "--to", tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "recipe.json", "tokenizer.json"} <= found
    best = json.loads(evomerge("best", done / "run", "--json").stdout)
    assert json.loads((tmp_path / "out" / "recipe.json").read_text()) == best["recipe"]


def test_an_export_that_is_there_already_is_said_to_be_and_left_as_it_is(done, tmp_path):
    """A kill after the last rename leaves a complete folder, and the same command must end well."""
    command = ["export", done / "run", "--anyway", "--to", tmp_path / "out"]
    evomerge(*command)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = evomerge(*command)
    assert "is there already" in again.stderr
    assert str(tmp_path / "out") in again.stdout
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    other = evomerge(*(word for word in command if word != "--anyway"), "--trial", 0, code=2)
    assert "exists and is not an empty folder" in other.stderr
    for format in ("recipe", "mergekit"):
        file = [*command[:3], "--to", tmp_path / format, "--format", format]
        assert evomerge(*file).stdout == evomerge(*file).stdout


def test_any_trial_can_be_exported(done, tmp_path):
    from evomerge.study.run_folder import open_run

    evaluations = open_run(done / "run")[1].evaluations()
    [number] = [e.number for e in evaluations if (e.name, e.split) == ("math", "search")]
    evomerge("export", done / "run", "--trial", number, "--to", tmp_path / "math")
    ours = load_file(tmp_path / "math" / "model.safetensors")
    theirs = load_file(done / "models" / "math" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    text = evomerge("export", done / "run", "--trial", 999, "--to", tmp_path / "x", code=2).output
    assert "no such trial" in text


def test_an_export_without_room_is_refused(done, tmp_path, monkeypatch):
    from evomerge.materialize.disk import stream

    usage = stream.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: usage)
    text = evomerge("export", done / "run", "--anyway", "--to", tmp_path / "out", code=2).stderr
    assert "make room or choose another folder" in text.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_the_card_has_scores_with_intervals_and_the_commands(done):
    card = (done / "out" / "README.md").read_text()
    best = json.loads(evomerge("best", done / "run", "--json").stdout)
    test = best["scores"]["test"]
    assert f"{test['mean']:.3f} [{test['low']:.3f}, {test['high']:.3f}]" in card
    for row in ("base (parent)", "math (parent)", "average (baseline)", "pick (18 items)"):
        assert row in card
    assert "lm_eval --model hf" in card
    assert f"pretrained={done / 'out'}" in card


def test_the_card_of_another_trial_has_that_trials_scores(done, tmp_path):
    from evomerge.study.run_folder import open_run

    [trial] = [
        e
        for e in open_run(done / "run")[1].evaluations()
        if (e.name, e.split) == ("lang", "search")
    ]
    evomerge("export", done / "run", "--trial", trial.number, "--to", tmp_path / "lang")
    card = (tmp_path / "lang" / "README.md").read_text()
    assert f"| this merge | {trial.value:.3f} [" in card


def test_export_formats_write_one_file(done, tmp_path):
    for name, format in (("recipe.json", "recipe"), ("mergekit.yaml", "mergekit")):
        evomerge("export", done / "run", "--anyway", "--format", format, "--to", tmp_path / name)
        assert (tmp_path / name).read_bytes() == (done / "out" / name).read_bytes()


def test_a_campaign_that_beats_no_parent_is_exported_only_when_told_to(done, tmp_path):
    refused = evomerge("export", done / "run", "--to", tmp_path / "out", code=2)
    assert "No merge beats `" in refused.stderr
    assert "--anyway" in refused.stderr
    assert not (tmp_path / "out").exists()
    best = json.loads(evomerge("best", done / "run", "--json").stdout)
    evomerge("export", done / "run", "--trial", best["trial"], "--to", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Trial {best['trial']} does not beat `" in card
    said = (done / "out" / "README.md").read_text()
    assert best["verdict"]["text"] in said
    assert evomerge(
        "export", done / "run", "--anyway", "--trial", 1, "--to", tmp_path / "x", code=2
    ).stderr.startswith("error: give one of --trial")
