"""A whole front, or a whole archive, as folders with an index."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from evomerge.campaign.setup import prepare
from evomerge.cli import app
from evomerge.common.errors import InputError
from evomerge.export import many_trials as exports
from evomerge.export.many_trials import export_many
from evomerge.export.trial import export_trial
from evomerge.materialize.disk import stream
from evomerge.recipe import load_recipe
from evomerge.results.results import Results
from evomerge.search.optimizers.replay import members
from evomerge.study.judged import judge_on
from evomerge.study.run_folder import open_run, run_folder


@pytest.fixture
def run(finished):
    return open_run(finished / "run")


def index_of(folder):
    return json.loads((folder / "index.json").read_text())


def test_the_front_is_a_folder_for_each_of_its_trials(run, finished, tmp_path):
    out = export_many(*run, "front", tmp_path / "front", run=run_folder(finished / "run"))
    front = Results(run[1]).best()["front"]
    index = index_of(out)
    assert [row["trial"] for row in index["members"]] == [one["trial"] for one in front]
    for row, one in zip(index["members"], front, strict=True):
        folder = out / row["folder"]
        assert load_recipe(folder / "recipe.json").digest == one["digest"] == row["digest"]
        means = {task: found["mean"] for task, found in row["scores"]["search"]["tasks"].items()}
        assert means == pytest.approx(one["search"])
    AutoModelForCausalLM.from_pretrained(out / index["members"][0]["folder"])
    card = (out / "README.md").read_text()
    assert all(f"[{row['folder']}]" in card for row in index["members"])
    assert ModelCard.load(out / "README.md").data.tags == ["merge", "evomerge"]


def test_the_archive_is_what_the_optimizer_kept(run, tmp_path):
    out = export_many(*run, "archive", tmp_path / "archive", "recipe")
    study = run[1]
    setup = prepare(run[0])
    judge = judge_on(setup.judge, study.evaluations(), "search")
    kept = members(setup.optimizer, judge, study.evaluations(), study.known_at_start())
    assert len(kept) == 4
    rows = index_of(out)["members"]
    assert {row["digest"] for row in rows} == {trial.digest for trial in kept}
    assert {p.name for p in (out / rows[0]["folder"]).iterdir()} == {"recipe.json"}


def test_a_member_has_the_bytes_of_its_own_export(run, tmp_path):
    out = export_many(*run, "front", tmp_path / "front")
    row = index_of(out)["members"][-1]
    alone = export_trial(*run, row["trial"], tmp_path / "alone")
    ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (out / row["folder"], alone)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_stopped_export_goes_on_and_other_folders_are_left_alone(run, tmp_path):
    out = export_many(*run, "front", tmp_path / "front")
    first, *_ = index_of(out)["members"]
    kept = (out / first["folder"] / "model.safetensors").stat().st_mtime_ns
    (out / "index.json").unlink()
    export_many(*run, "front", out)
    assert (out / first["folder"] / "model.safetensors").stat().st_mtime_ns == kept
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds mine\.txt"):
        export_many(*run, "front", out)


def test_estimates_are_left_out_and_named(run, tmp_path, monkeypatch):
    front = exports._front(Results(run[1]))
    object.__setattr__(front[0], "estimated", True)
    monkeypatch.setattr(exports, "_front", lambda study: front)
    out = export_many(*run, "front", tmp_path / "front", "recipe")
    assert index_of(out)["estimated"] == [front[0].number]
    assert not (out / f"trial-{front[0].number}").exists()
    assert f"estimates: trials {front[0].number}." in (out / "README.md").read_text()


def test_a_front_without_room_for_all_of_it_is_refused(run, tmp_path, monkeypatch):
    weights = 41_000  # of one member
    usage = stream.shutil.disk_usage(tmp_path)._replace(free=int(1.5 * weights))
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="make room"):
        export_many(*run, "archive", tmp_path / "archive")
    assert not any((tmp_path / "archive").iterdir())


def test_one_goal_has_no_front_and_cma_no_archive(tmp_path):
    campaign = tiny.save_campaign(tmp_path, budget={"trials": 1})
    command = ["search", str(campaign), "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(app, command).exit_code == 0
    run = open_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"--front: .* has one goal"):
        export_many(*run, "front", tmp_path / "front")
    with pytest.raises(InputError, match="--archive: cma keeps no archive"):
        export_many(*run, "archive", tmp_path / "archive")
