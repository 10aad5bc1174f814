"""Workers materialize recipes and score them: in the driver's process, isolated, or on Ray."""

from evomerge.workers.build import build_executor
from evomerge.workers.job import Event, Executor, Job, Outcome
from evomerge.workers.worker import Measurement, Worker, WorkerSpec

__all__ = [
    "Event",
    "Executor",
    "Job",
    "Measurement",
    "Outcome",
    "Worker",
    "WorkerSpec",
    "build_executor",
]
