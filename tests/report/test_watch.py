"""`evomerge status --watch`: the table follows the campaign, and ends with it."""

from __future__ import annotations

import pytest
from invented import Invented
from rich.console import Console
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.report import watch as room
from evomerge.report.watch import watch
from evomerge.study.driver import driver_named
from evomerge.study.run_folder import FollowedRun


def test_it_follows_the_study_until_the_campaign_is_done(tmp_path, monkeypatch):
    run = Invented(tmp_path / "run", budget=3).references().search([0.3])
    steps = iter([lambda: run.search([0.6]), lambda: run.search([0.8]), run.finish])
    monkeypatch.setattr(room.time, "sleep", lambda _: next(steps)())
    console = Console(record=True, width=100)
    watch(FollowedRun(run.folder), console)
    assert next(steps, None) is None, "it looked until the end"
    text = console.export_text()
    assert "3 of 3" in text
    assert "done" in text


def test_it_ends_with_a_search_that_stopped_and_waits_between_stages(tmp_path, monkeypatch):
    run = Invented(tmp_path / "run", budget=3).references().search([0.3])
    monkeypatch.setattr(room.time, "sleep", lambda _: run.study.close())
    console = Console(record=True, width=100)
    watch(FollowedRun(run.folder), console)
    assert "stopped; the same search command goes on" in console.export_text()

    stage = Invented(tmp_path / "stages", budget=1).references().search([0.3]).finish()
    stage.study.set_note("stage", {"name": "one", "place": 1, "of": 2, "before": []})
    search = driver_named(stage.folder / "search")
    search.__enter__()
    looks = iter([lambda: None, lambda: search.__exit__(None, None, None)])
    monkeypatch.setattr(room.time, "sleep", lambda _: next(looks)())
    watch(FollowedRun(stage.folder), console)
    assert next(looks, None) is None, "it waited for the next stage while the search ran"


def test_ctrl_c_ends_it_in_order(midway, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(room.time, "sleep", interrupt)
    result = CliRunner().invoke(app, ["status", str(midway.folder), "--watch"])
    assert result.exit_code == 0, result.output
    assert "3 of 20" in result.stdout
    assert "not known yet" not in result.stdout


def test_one_object_and_a_watch_do_not_go_together(midway):
    result = CliRunner().invoke(app, ["status", str(midway.folder), "--watch", "--json"])
    assert result.exit_code == 2
    assert "choose one" in result.output


def test_a_stage_that_ends_gives_way_to_the_next(tmp_path):
    import yaml

    first = Invented(tmp_path / "run" / "one").references().search([0.3])
    campaign = yaml.safe_load((first.folder / "campaign.yaml").read_text())
    space = campaign.pop("space")
    campaign["stages"] = [{"name": name, "space": space} for name in ("one", "two")]
    (tmp_path / "run" / "campaign.yaml").write_text(yaml.safe_dump(campaign))
    run = FollowedRun(tmp_path / "run")
    assert len(run.study.evaluations()) == 6
    assert run.study is run.study, "what was read is kept"
    Invented(tmp_path / "run" / "two").references()
    assert len(run.study.evaluations()) == 5


@pytest.mark.parametrize("flag", ["--watch", "--json"])
def test_a_folder_without_a_run_is_bad_input(tmp_path, flag):
    assert CliRunner().invoke(app, ["status", str(tmp_path), flag]).exit_code == 2
