"""The report's figures in the study, where optuna-dashboard finds them."""

from __future__ import annotations

import json
import sys

import optuna
import pytest
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.report.all_figures import view_of
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run

plots = pytest.importorskip("optuna_dashboard._custom_plot_data")


def pushed(folder):
    return CliRunner().invoke(app, ["report", str(folder), "--to-optuna-dashboard"])


def found(folder):
    """The figures as optuna-dashboard's own code reads them."""
    study = optuna.load_study(study_name="invented", storage=f"sqlite:///{folder}/study.db")
    attributes = study._storage.get_study_system_attrs(study._study_id)
    return {k: json.loads(v) for k, v in plots.get_plotly_graph_objects(attributes).items()}


def test_every_figure_is_saved_with_a_title_and_a_second_time_in_place(extensible):
    result = pushed(extensible.folder)  # while the driver holds its lock
    assert result.exit_code == 0, result.output
    ids = [figure.id for figure in view_of(extensible.study).figures]
    assert result.stdout.split() == ids
    first = found(extensible.folder)
    assert set(first) == set(ids)
    assert all(figure["layout"]["title"]["text"] for figure in first.values())
    extensible.search([0.95])
    pushed(extensible.folder)
    points = [
        t for t in found(extensible.folder)["figure-progress"]["data"] if t.get("name") == "trial"
    ]
    assert len(points[0]["x"]) == 5
    assert not (extensible.folder / "report.html").exists()


def test_nothing_else_in_the_study_is_touched(extensible):
    before = (extensible.results.best(), extensible.results.status())
    pushed(extensible.folder)
    _, study = open_run(extensible.folder)
    assert (Results(study).best(), Results(study).status()) == before
    extensible.search([0.2])  # the driver goes on


def test_without_optuna_dashboard_it_says_what_to_install(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    result = pushed(finished.folder)
    assert result.exit_code == 2
    assert "pip install 'evomerge[dashboard]'" in result.output
