"""Builds the executor that the campaign file asks for."""

from __future__ import annotations

from evomerge.workers.isolated import IsolatedExecutor
from evomerge.workers.job import Executor
from evomerge.workers.local import LocalExecutor
from evomerge.workers.worker import WorkerSpec


def build_executor(spec: WorkerSpec) -> Executor:
    """Build the executor that the campaign's `workers` section asks for.

    Raises:
        InputError: models or tasks cannot be loaded, or the cluster cannot be reached.
    """
    if not spec.config.workers.on_ray:
        return IsolatedExecutor(spec) if spec.config.workers.isolated else LocalExecutor(spec)
    from evomerge.workers.ray.executor import RayExecutor  # late: it imports ray

    return RayExecutor(spec)
