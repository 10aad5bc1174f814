"""Stages: searches one after the other, each building on the winners of those before it."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import tiny
import yaml
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.config import load_campaign
from evomerge.export.merge import merge_file
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run
from evomerge.workers.local import LocalExecutor

WEIGHTS = {"weights": {"method": "task_arithmetic", "genes": {"weight": [0, 1.5]}}}
HYBRID = [
    {"name": "blend", "space": WEIGHTS, "trials": 6},
    {
        "name": "flow",
        "space": {"path": {"kind": "indicator", "a": "blend", "others": ["math"], "repeats": 2}},
        "optimizer": {"kind": "random"},
        "trials": 5,
    },
]
WEIGHTS_ALONG = [
    {"name": "flow", "space": {"path": {"kind": "slices", "count": 2, "max_depth": 4}}},
    {"name": "tuned", "space": {**WEIGHTS, "path": {"kind": "given", "layers": "flow"}}},
]


def save(folder, stages):
    """A tiny campaign of these stages."""
    path = tiny.save_campaign(folder, budget={"trials": 5})
    data = {**yaml.safe_load(path.read_text()), "stages": stages}
    del data["space"]
    path.write_text(yaml.safe_dump(data))
    return path


def search(campaign, out, *options):
    return CliRunner().invoke(app, ["search", str(campaign), "--out", str(out), *options])


def facts(out, stage):
    evaluations = open_run(out / stage)[1].evaluations()
    return [(e.role, e.name, e.split, e.digest, e.value, e.ask) for e in evaluations]


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")
    campaign = save(folder, HYBRID)
    result = search(campaign, folder / "run")
    assert result.exit_code == 0, result.output
    return folder


def test_the_second_stage_has_the_first_ones_winner_as_a_model(hybrid):
    first, second = (open_run(hybrid / "run" / name)[1] for name in ("blend", "flow"))
    winner = Results(first).best()
    blend = next(e for e in second.evaluations() if e.name == "blend" and e.split == "search")
    assert blend.value == winner["scores"]["search"]["mean"]
    ends = {e.recipe["path"][i]["source"] for e in second.evaluations() if e.ask for i in (0, -1)}
    assert ends == {"blend"}


def test_only_the_last_stage_opens_test(hybrid):
    assert {split for _, _, split, *_ in facts(hybrid / "run", "blend")} == {"search", "select"}
    tested = [name for _, name, split, *_ in facts(hybrid / "run", "flow") if split == "test"]
    assert {"base", "math", "lang", "blend"} <= set(tested)


def test_parents_and_baselines_of_the_first_stage_are_not_measured_again(hybrid):
    earlier = open_run(hybrid / "run" / "blend")[1].evaluations()
    known = {(e.digest, e.split) for e in earlier}
    again = open_run(hybrid / "run" / "flow")[1].evaluations()
    assert sum((e.digest, e.split) in known for e in again) > 4
    assert all(not e.seconds for e in again if (e.digest, e.split) in known)


def test_best_tells_the_lineage_and_status_the_stage(hybrid):
    _, study = open_run(hybrid / "run")
    (before,) = Results(study).best()["stages"]
    winner = Results(open_run(hybrid / "run" / "blend")[1]).best()
    assert (before["stage"], before["digest"]) == ("blend", winner["digest"])
    assert before["select"] == winner["scores"]["select"]["mean"]
    shown = CliRunner().invoke(app, ["best", str(hybrid / "run")]).output
    assert "stage blend: trial" in shown
    assert Results(study).status()["stage"] == {"name": "flow", "place": 2, "of": 2}
    assert Results(study).status()["done"]


def test_the_export_of_a_hybrid_is_merged_again_from_its_files(hybrid, tmp_path):
    result = CliRunner().invoke(
        app, ["export", str(hybrid / "run"), "--anyway", "--to", str(tmp_path / "a")]
    )
    assert result.exit_code == 0, result.output
    merge_file(tmp_path / "a" / "recipe.json", tmp_path / "b", {}, None)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_second_run_of_a_finished_hybrid_repeats_nothing(hybrid, monkeypatch):
    before = [facts(hybrid / "run", stage) for stage in ("blend", "flow")]
    monkeypatch.setattr(LocalExecutor, "submit", lambda *_: pytest.fail("measured again"))
    assert search(hybrid / "campaign.yaml", hybrid / "run").exit_code == 0
    assert [facts(hybrid / "run", stage) for stage in ("blend", "flow")] == before


class Dying(LocalExecutor):
    left = 0

    def wait(self):
        Dying.left -= 1
        if Dying.left < 0:
            raise SystemError("the driver died")
        return super().wait()


@pytest.mark.parametrize(
    "at", [17, *(pytest.param(at, marks=pytest.mark.slow) for at in (4, 25, 33))]
)
def test_dying_in_any_stage_loses_only_the_evaluation_in_flight(hybrid, tmp_path, monkeypatch, at):
    Dying.left = at
    with monkeypatch.context() as patch:
        patch.setattr("evomerge.campaign.open.build_executor", Dying)
        result = search(hybrid / "campaign.yaml", tmp_path / "run")
        assert isinstance(result.exception, SystemError)
    assert search(hybrid / "campaign.yaml", tmp_path / "run").exit_code == 0
    for stage in ("blend", "flow"):
        assert facts(tmp_path / "run", stage) == facts(hybrid / "run", stage)


@pytest.mark.slow
def test_time_that_ends_before_a_stages_budget_leaves_it_open(hybrid, tmp_path):
    campaign, out = hybrid / "campaign.yaml", tmp_path / "run"
    assert search(campaign, out, "--hours", "0.0000001").exit_code == 3
    assert Results(open_run(out)[1]).status()["stage"]["name"] == "blend"
    assert not Results(open_run(out)[1]).status()["done"]
    assert search(campaign, out).exit_code == 0
    assert facts(out, "flow") == facts(hybrid / "run", "flow")


def test_weights_are_searched_along_an_earlier_stages_path(tmp_path):
    campaign = save(tmp_path, WEIGHTS_ALONG)
    result = search(campaign, tmp_path / "run")
    assert result.exit_code == 0, result.output
    path = json.loads((tmp_path / "run" / "flow" / "winner.json").read_text())["path"]
    _, study = open_run(tmp_path / "run")
    own = [e for e in study.evaluations() if e.optimizers_own]
    assert len({e.digest for e in own}) > 1
    for trial in own:
        assert [s["layer"] for s in trial.recipe["path"]] == [s["layer"] for s in path]
        assert trial.recipe["merges"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([HYBRID[0], {**HYBRID[1], "name": "math"}], r"'math' is taken"),
        ([HYBRID[0], {**HYBRID[1], "trails": 5}], r"stages\.1\.trails.*did you mean 'trials'"),
        (
            [HYBRID[0], {"name": "flow", "space": {"path": {"kind": "indicator", "a": "blnd"}}}],
            r"stages\.flow: space\.path\.a: .*did you mean 'blend'",
        ),
        (
            [
                HYBRID[0],
                {"name": "t", "space": {**WEIGHTS, "path": {"kind": "given", "layers": "blend"}}},
            ],
            r"stages\.t\.space\.path\.layers: no earlier stage 'blend' that searches a path",
        ),
        (
            [{"name": "t", "space": {"path": {"kind": "given", "layers": [0, 1]}}}],
            r"kind given has nothing to search",
        ),
        (
            [{"name": "t", "space": {**WEIGHTS, "path": {"kind": "given", "layers": [0, 2]}}}],
            r"2 is no layer; the models have 0 to 1",
        ),
    ],
)
def test_stages_that_cannot_work_are_refused_before_the_first(tiny_folder, stages, message):
    result = search(save(tiny_folder, stages), tiny_folder / "run")
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.output.split()))
    assert not (tiny_folder / "run").exists()


def test_a_stage_that_was_built_upon_is_not_extended(hybrid):
    result = search(hybrid / "campaign.yaml", hybrid / "run", "--set", "stages.blend.trials=9")
    assert result.exit_code == 2
    assert "its winner was chosen after 6 trials" in " ".join(result.output.split())


@pytest.mark.slow
def test_stages_can_be_added_to_a_finished_campaign_and_not_be_changed(hybrid, tmp_path):
    run = shutil.copytree(hybrid / "run", tmp_path / "run")
    before = {stage: facts(run, stage) for stage in ("blend", "flow")}
    space = {**WEIGHTS, "path": {"kind": "given", "layers": "flow"}}
    data = yaml.safe_load((hybrid / "campaign.yaml").read_text())
    data["stages"].append({"name": "tuned", "space": space, "trials": 3})
    more = hybrid / "more.yaml"
    more.write_text(yaml.safe_dump(data))
    result = search(more, run)
    assert result.exit_code == 0, result.output
    assert "opened for stage flow before tuned was added" in " ".join(result.output.split())
    assert {stage: facts(run, stage) for stage in ("blend", "flow")} == before
    assert sum(ask is not None for *_, ask in facts(run, "tuned")) == 3
    assert Results(open_run(run)[1]).status()["state"] == "done"
    # fewer stages, or others, are another campaign
    result = search(hybrid / "campaign.yaml", run)
    assert result.exit_code == 2
    assert "stages may be added after the last one" in " ".join(result.output.split())


def test_stages_are_overridden_by_name_or_position(hybrid):
    campaign = hybrid / "campaign.yaml"
    for key in ("stages.flow.trials", "stages.1.trials"):
        assert load_campaign(campaign, [f"{key}=7"]).stages[1].trials == 7
