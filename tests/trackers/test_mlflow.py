"""MLflow itself: what it holds after kills and resumes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evomerge.config import TrackerConfig
from evomerge.study.record import Evaluation
from evomerge.trackers.base import Run
from evomerge.trackers.build import build_tracker


def test_mlflow_takes_more_tasks_than_it_takes_at_a_time(tmp_path):
    pytest.importorskip("mlflow")
    told = Run("s", tmp_path, "u", {"name": "c"}, 0, None, False, print)
    scores = {f"t,{i}": np.array([1.0]) for i in range(1500)}
    trial = Evaluation("search", "d", {}, value=1.0, scores=scores, number=0)
    mlflow = build_tracker(TrackerConfig(kind="mlflow"), "trackers.0")
    assert mlflow.begin(told) == 0
    mlflow.record(trial, trial)
    assert mlflow.begin(told) == 1


def mlflow_runs(study):
    client = pytest.importorskip("mlflow").MlflowClient(f"sqlite:///{study.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("invented")
    return client, client.search_runs([experiment.experiment_id])


@pytest.mark.slow
def test_mlflow_has_one_run_that_holds_every_point_once(study):
    with study.run(trackers=["mlflow"]):
        study.references().search([0.3, 0.9])
    with pytest.raises(RuntimeError), study.run(trackers=["mlflow"]):
        raise RuntimeError("something")
    client, (run,) = mlflow_runs(study)
    assert run.info.status == "FAILED"
    with study.run(trackers=["mlflow"]):
        study.search([0.2]).finish()
    assert study.ear.lines == []
    client, (run,) = mlflow_runs(study)
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "trial")]
    assert steps == list(range(study.recorded))
    values = client.get_metric_history(run.info.run_id, "search/value")
    own = [e for e in study.study.evaluations() if e.optimizers_own]
    assert [(m.step, m.value) for m in values] == [(e.number, e.value) for e in own]
    assert values[0].timestamp == int(1000 * own[0].finished.timestamp())
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"campaign.json", "best.json"}
    best = study.folder / "mlflow-artifacts" / run.info.run_id / "artifacts" / "best.json"
    assert json.loads(best.read_text())["trial"] == own[1].number


@pytest.mark.parametrize(
    ("level", "said"),
    [
        (0.05, "No merge beats `lang`: trial 5"),
        pytest.param(0.95, "Trial 5 beats the best parent", marks=pytest.mark.slow),
    ],
)
def test_mlflow_shows_the_verdict_as_the_runs_description(study, level, said):
    pytest.importorskip("mlflow")
    with study.run(trackers=["mlflow"]):
        study.references().search([0.3]).finish(level)
    _, (run,) = mlflow_runs(study)
    assert run.data.tags["mlflow.note.content"].startswith(said)
