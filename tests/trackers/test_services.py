"""TensorBoard, MLflow and Weights & Biases themselves: what they hold after kills and resumes."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import tenacity

from evomerge.config import TrackerConfig
from evomerge.study.record import Evaluation
from evomerge.trackers.base import Run, numbers
from evomerge.trackers.build import build_tracker


def recorded(study):
    return len(study.study.evaluations())


# TensorBoard


def scalars(study):
    """tag → [(step, value)], every event of every file but those that were taken back."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = module.EventAccumulator(str(study.folder / "tensorboard"), {"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_holds_every_point_once_however_often_the_campaign_is_resumed(study):
    with study.run(trackers=["tensorboard"]):
        study.references().search([0.3, 0.9])
    with study.run(trackers=["tensorboard"]):
        study.search([0.5])
    with study.run(trackers=["tensorboard"]):
        study.search([0.2]).finish()
    assert study.ear.lines == []
    found = scalars(study)
    assert [step for step, _ in found["trial"]] == list(range(recorded(study)))
    own = {e.number: e for e in study.study.evaluations() if e.optimizers_own}
    assert dict(found["search/value"]) == pytest.approx({n: e.value for n, e in own.items()})
    assert len(found["search/value"]) == 4
    best = own[6].value
    assert [v for _, v in found["search/best"]] == pytest.approx([own[5].value, best, best, best])
    assert len(found["search/parent/math"]) == len(found["test/finalist"]) == 1
    assert [step for step, _ in found["task/add"]] == list(own)


def test_tensorboard_takes_back_a_trial_that_a_kill_cut_short(study):
    with study.run(trackers=["tensorboard"]):
        study.references().search([0.3])
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(study.folder / "tensorboard")) as cut:
        cut.add_scalar("search/value", 0.125, 6)
    with study.run(trackers=["tensorboard"]):
        study.search([0.9])
    values = dict(scalars(study)["search/value"])
    assert len(scalars(study)["search/value"]) == 2
    assert values[6] == pytest.approx(study.study.evaluations()[6].value)


# MLflow


def test_curves_are_finite_and_as_many_as_one_can_look_at():
    genes, names = {f"g{i}": 0.5 for i in range(65)}, [f"t{i}" for i in range(1500)]
    scores = {name: np.array([np.nan if name == "t7" else 1.0]) for name in names}
    facts = {"split": "search", "digest": "d", "recipe": {}, "value": 1.0, "scores": scores}
    found = numbers(Evaluation(**facts, params=genes), None)
    assert len(found) == 1499 + 2
    assert not any(name.startswith("gene/") for name in found)
    few = dict(list(genes.items())[:64])
    assert "gene/g0" in numbers(Evaluation(**facts, params=few), None)


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
    assert steps == list(range(recorded(study)))
    values = client.get_metric_history(run.info.run_id, "search/value")
    own = [e for e in study.study.evaluations() if e.optimizers_own]
    assert [(m.step, m.value) for m in values] == [(e.number, e.value) for e in own]
    assert values[0].timestamp == int(1000 * own[0].finished.timestamp())
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"campaign.json", "best.json"}
    best = study.folder / "mlflow-artifacts" / run.info.run_id / "artifacts" / "best.json"
    assert json.loads(best.read_text())["trial"] == own[1].number


# Weights & Biases


@tenacity.retry(  # wandb's own process may still be writing
    retry=tenacity.retry_if_result(lambda history: len(history) < 20),
    stop=tenacity.stop_after_delay(30),
    wait=tenacity.wait_fixed(0.2),
    retry_error_callback=lambda state: state.outcome.result(),
)
def wandb_history(study):
    """[(run, step, {key: value})] of all offline runs, in order, out of wandb's own files."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    found = []
    for path in sorted((study.folder / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in log_records(path.read_bytes()):
            record = pb.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                values = {
                    (i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items
                }
                found.append((path.stem, record.history.step.num, values))
    return found


def log_records(data, header=7, block=32768):
    """The records of a LevelDB log, as wandb writes it: blocks of chunks, each with a header."""
    place, parts = header, []
    while place + 7 <= len(data):
        left = block - place % block
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts.append(data[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def test_wandb_offline_keeps_every_step_once_under_one_run(study):
    pytest.importorskip("wandb")
    offline = [{"kind": "wandb", "mode": "offline", "project": "merges"}]
    with study.run(trackers=offline):
        study.references().search([0.3, 0.9])
    with study.run(trackers=offline):
        study.search([0.2]).finish()
    assert study.ear.lines == []
    history = wandb_history(study)
    assert Counter(step for _, step, _ in history) == Counter(range(recorded(study)))
    assert {run for run, _, _ in history} == {f"run-{study.study.note('uid')}"}
    own = [e for e in study.study.evaluations() if e.optimizers_own]
    values = {step: row["search/value"] for _, step, row in history if "search/value" in row}
    assert values == {e.number: e.value for e in own}


def test_wandb_without_a_key_is_switched_off_instead_of_asking_for_one(
    study, monkeypatch, tmp_path
):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with study.run(trackers=["wandb"]):
        study.references()
    (line,) = study.ear.lines
    assert "tracker wandb is switched off" in line
    assert "wandb login" in line
