"""`import evomerge` is the command line's objects, imported when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tiny
import yaml

import evomerge
from evomerge.common.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a campaign given as a mapping, with absolute paths."""
    folder = tmp_path_factory.mktemp("python")
    file = tiny.save_campaign(folder)
    campaign = evomerge.load_campaign(file)
    data = yaml.safe_load(yaml.safe_dump(campaign.model_dump(mode="json")))
    return evomerge.search(data, folder / "run", trials=6)


def test_a_campaign_runs_from_a_mapping(run):
    assert run.status()["done"]
    assert run.status()["trials"] == 6
    assert "done" in repr(run)
    assert run.campaign.budget.trials == 6


def test_the_same_call_goes_on(run):
    again = evomerge.search(run.folder / "campaign.yaml", run.folder, trials=6)
    assert again.status()["digests"] == run.status()["digests"]


def test_trials_are_a_frame_with_a_column_for_each_gene(run):
    frame = run.trials()
    assert len(frame) == 6
    assert {"value", "se", "digest", "seconds"} <= set(frame.columns)
    assert [name for name in frame.columns if name.startswith("gene:")]
    assert frame["value"].max() == run.status()["best"]["value"]


def test_a_run_is_opened_reported_drawn_and_exported(run, tmp_path):
    opened = evomerge.open_run(run.folder)
    assert isinstance(opened, evomerge.Run)
    assert opened.best()["digest"] in set(opened.trials()["digest"])
    assert "Scores with intervals" in opened.figures()
    assert "<html" in opened.report(tmp_path / "page.html").read_text()
    written = opened.export(tmp_path / "recipe.json", format="recipe", anyway=True)
    assert written.is_file()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run here"):
        evomerge.open_run(tmp_path)


def test_relative_paths_of_a_mapping_start_at_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = evomerge.load_campaign(tiny.campaign_data(), ["seed=3"])
    assert config.fitness.include_path == str(tmp_path / "tasks")
    assert config.seed == 3


def test_the_import_loads_nothing_heavy():
    heavy = "pydantic|torch|numpy|pandas|optuna|plotly|ray|rich|yaml"
    code = f"import evomerge, sys; print([m for m in '{heavy}'.split('|') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "[]"


def test_every_public_name_is_there():
    for name in evomerge.__all__:
        assert getattr(evomerge, name)
    assert callable(evomerge.search)
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        _ = evomerge.serch
