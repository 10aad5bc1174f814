"""MLflow: the tracker `mlflow`."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from evomerge.study.record import Evaluation
from evomerge.trackers.base import Outcome, Run, Tracker, numbers, tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

LAST = "trial"
"""The metric that is logged with every trial."""
BATCH = 1000
"""Metrics that MLflow takes at a time."""
UID = "evomerge.uid"
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


@tracker("mlflow")
class MLflow(Tracker):
    """Writes a run of an MLflow server, or of the database mlflow.db in the run's folder.

    Example: `kind: mlflow, uri: 'http://localhost:5000', experiment: merges`
    """

    needs = "mlflow"
    _client: MlflowClient
    _run: str

    def __init__(self, *, uri: str | None = None, experiment: str | None = None) -> None:
        """Choose where.

        Args:
            uri: the tracking server's URI; by default MLFLOW_TRACKING_URI, else the run's folder.
            experiment: the experiment's name; by default the campaign's.
        """
        self._uri, self._experiment = uri, experiment

    @override
    def begin(self, run: Run) -> int:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        from mlflow import MlflowClient

        uri = self._uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(uri or f"sqlite:///{run.folder.resolve() / 'mlflow.db'}")
        name = self._experiment or str(run.campaign["name"])
        experiment = self._experiment_of(name, None if uri else run.folder)
        found = self._client.search_runs([experiment], f"tags.`{UID}` = '{run.uid}'", max_results=1)
        if not found:
            tags = {UID: run.uid, "mlflow.runName": run.name}
            self._run = self._client.create_run(experiment, tags=tags).info.run_id
            self._client.log_dict(self._run, dict(run.campaign), "campaign.json")
            return 0
        self._run = found[0].info.run_id
        self._client.update_run(self._run, "RUNNING")
        logged = self._client.get_metric_history(self._run, LAST)
        return 1 + max((metric.step for metric in logged), default=-1)

    @override
    def record(self, evaluation: Evaluation, best: Evaluation | None) -> None:
        from mlflow.entities import Metric

        moment = evaluation.finished.timestamp() if evaluation.finished else time.time()
        step = evaluation.number or 0
        values = {**numbers(evaluation, best), LAST: step}
        metrics = [Metric(_key(k), v, int(1000 * moment), step) for k, v in values.items()]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run, metrics=metrics[start : start + BATCH])

    @override
    def end(self, outcome: Outcome) -> None:
        if outcome.summary:
            self._client.log_dict(self._run, dict(outcome.summary), "best.json")
            # MLflow shows this tag as the run's description
            self._client.set_tag(self._run, "mlflow.note.content", outcome.verdict)
        self._client.set_terminated(self._run, STATUS[outcome.kind])

    def _experiment_of(self, name: str, folder: Path | None) -> Any:
        """Find or make the experiment; return its id. Its files are kept in `folder`, if given."""
        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return known.experiment_id
        files = (folder / "mlflow-artifacts").resolve().as_uri() if folder else None
        return self._client.create_experiment(name, artifact_location=files)


def _key(name: str) -> str:
    """Replace the characters that MLflow does not take in names."""
    return re.sub(r"[^\w./ -]", "_", name)
