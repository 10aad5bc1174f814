"""The executor in the driver's own process."""

from __future__ import annotations

from functools import partial

from evomerge.workers.isolated import measure_isolated
from evomerge.workers.job import Event, Job, Outcome, attempt, perform
from evomerge.workers.worker import Worker, WorkerSpec


class LocalExecutor:
    """Holds one worker; `wait` does the work."""

    isolated = False
    workers = 1

    def __init__(self, spec: WorkerSpec) -> None:
        """Build the worker.

        Raises:
            InputError: models or tasks cannot be loaded.
        """
        self._spec = spec
        self._worker: Worker | None = Worker(spec)
        self._job: Job | None = None
        self._device_lost = False

    @property
    def free(self) -> int:
        """1 while there is no job, else 0."""
        return int(self._job is None)

    def submit(self, job: Job) -> None:
        """Keep the job for `wait`."""
        assert self._job is None, "the worker is taken"
        self._job = job

    def wait(self) -> Outcome:
        """Measure the job that was submitted.

        Raises:
            InputError: the input is wrong for every candidate.
            EvomergeError: this machine is at fault.
        """
        assert self._job is not None, "nothing was submitted"
        job, self._job = self._job, None
        if job.last or self._device_lost:
            self._worker = None  # no second model beside the other process's
            outcome = measure_isolated(job, self._spec)
        else:
            self._worker = self._worker or Worker(self._spec)
            outcome = attempt(job, partial(perform, self._worker))
            # After an error on a device a process cannot use it again.
            self._device_lost = outcome.retryable
        outcome.check_machine()
        return outcome

    def drain_events(self) -> list[Event]:
        """Return no events: there are none in one process."""
        return []

    def close(self) -> None:
        """Do nothing: the worker goes with the process."""
