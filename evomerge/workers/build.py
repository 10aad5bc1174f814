"""The executor: jobs in, outcomes out, in the order in which they are done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from evomerge.common.errors import EvomergeError, InputError
from evomerge.recipe import Recipe
from evomerge.workers.faults import is_device_fault, is_machine_fault
from evomerge.workers.worker import Measurement, Worker, WorkerSpec


@dataclass(frozen=True)
class Job:
    """A recipe to measure on a split; `ticket` is whose it is, one job each at a time.

    `items`: task → ids of the split's items to measure; None for all. `last`: the candidate will
    have no further attempt.
    """

    ticket: int
    recipe: Recipe
    split: str
    items: Mapping[str, Sequence[str]] | None = None
    last: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a measurement, or a reason why there is none.

    Attributes:
        retryable: the worker died, so the job may be tried again; any other failure is the
            candidate's own.
        machine_fault: the machine failed, not the candidate: this is no attempt of it.
    """

    job: Job
    measurement: Measurement | None = None
    reason: str | None = None
    retryable: bool = False
    machine_fault: bool = False


@dataclass(frozen=True)
class Event:
    """What happened to workers and machines; `text` says it to people, where it is worth that."""

    kind: str
    text: str = ""


class Executor(Protocol):
    """Runs jobs on workers, which may come and go.

    Attributes:
        isolated: workers are processes of their own, so no candidate can take the driver down
            with it. Otherwise a `last` attempt is made in such a process.
    """

    isolated: bool

    @property
    def workers(self) -> int:
        """How many stand."""

    @property
    def free(self) -> int:
        """How many jobs could be begun now."""

    def submit(self, job: Job) -> None:
        """Begin a job; something must be free."""

    def wait(self) -> Outcome | None:
        """The next outcome; None when there is none yet, but `free` or time may have changed."""

    def drain_events(self) -> list[Event]:
        """Return what happened since the last call, and forget it."""

    def close(self) -> None:
        """Let the workers go."""


class LocalExecutor:
    """One worker in the driver's own process: `wait` does the work."""

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
        """One while there is no job."""
        return int(self._job is None)

    def submit(self, job: Job) -> None:
        """Keep the job for `wait`."""
        assert self._job is None, "the worker is taken"
        self._job = job

    def wait(self) -> Outcome:
        """Measure the job that was submitted.

        Raises:
            InputError: what is wrong is wrong for every candidate.
            EvomergeError: this machine is at fault.
        """
        assert self._job is not None, "nothing was submitted"
        job, self._job = self._job, None
        outcome = self._apart(job) if job.last or self._device_lost else self._here(job)
        if outcome.machine_fault:
            raise EvomergeError(f"this machine is at fault: {outcome.reason}; mend it and go on")
        return outcome

    def _here(self, job: Job) -> Outcome:
        self._worker = self._worker or Worker(self._spec)
        outcome = attempt(job, self._worker.measure)
        # After an error on a device a process cannot use it again.
        self._device_lost = outcome.retryable
        return outcome

    def _apart(self, job: Job) -> Outcome:
        """Measured in a process of its own, with no second model beside it."""
        from evomerge.workers.isolated import measured_apart

        self._worker = None
        return measured_apart(job, self._spec)

    def drain_events(self) -> list[Event]:
        """None ever."""
        return []

    def close(self) -> None:
        """Nothing to let go of."""


def attempt(job: Job, measure: Callable[..., Measurement]) -> Outcome:
    """Measure, and turn whatever goes wrong into an outcome that says whose fault it is.

    Raises:
        InputError: what is wrong is wrong for every candidate.
    """
    try:
        part = () if job.items is None else (job.items,)
        return Outcome(job, measure(job.recipe, job.split, *part))
    except InputError:
        raise
    except EvomergeError as error:
        return Outcome(job, reason=str(error))
    except MemoryError:
        return Outcome(job, reason="out of memory")
    # Model and metric code raises what it likes; one candidate must not end the night.
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        machine = is_machine_fault(error)
        return Outcome(
            job,
            reason=f"{type(error).__name__}: {first}",
            retryable=machine or is_device_fault(error),
            machine_fault=machine,
        )


def build_executor(spec: WorkerSpec) -> Executor:
    """The executor that the campaign's `workers` section asks for.

    Raises:
        InputError: models or tasks cannot be loaded, or the cluster cannot be reached.
    """
    if not spec.config.workers.on_ray:
        return LocalExecutor(spec)
    from evomerge.workers.ray.executor import RayExecutor

    return RayExecutor(spec)
