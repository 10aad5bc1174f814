"""The executor: jobs in, outcomes out, in the order in which they are done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from evomerge.errors import EvomergeError, InputError
from evomerge.recipe import Recipe
from evomerge.workers.worker import Measurement, Worker, WorkerSpec


@dataclass(frozen=True)
class Job:
    """A recipe to measure on a split; `slot` is the worker place it takes.

    `items`: task → ids of the split's items to measure; None for all.
    """

    slot: int
    recipe: Recipe
    split: str
    items: Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a measurement, or a reason why there is none.

    `lost`: the worker died under it, so that it may be tried again; a failure that is not lost is
    the candidate's own.
    """

    job: Job
    measurement: Measurement | None = None
    reason: str | None = None
    lost: bool = False


class Executor(Protocol):
    """Runs jobs on workers; never more than one per slot."""

    slots: int

    def submit(self, job: Job) -> None:
        """Start a job in its slot, which must be free."""

    def wait(self) -> Outcome:
        """The next outcome; blocks until there is one."""

    def close(self) -> None:
        """Let the workers go."""


class LocalExecutor:
    """One worker in the driver's own process: `wait` does the work."""

    slots = 1

    def __init__(self, spec: WorkerSpec) -> None:
        """Build the worker.

        Raises:
            InputError: models or tasks cannot be loaded.
        """
        self._worker = Worker(spec)
        self._job: Job | None = None

    def submit(self, job: Job) -> None:
        """Keep the job for `wait`."""
        assert self._job is None, "the slot is taken"
        self._job = job

    def wait(self) -> Outcome:
        """Measure the job that was submitted."""
        assert self._job is not None, "nothing was submitted"
        job, self._job = self._job, None
        return attempt(job, self._worker.measure)

    def close(self) -> None:
        """Nothing to let go of."""


def attempt(job: Job, measure: Callable[..., Measurement]) -> Outcome:
    """Measure, and turn whatever goes wrong with the candidate into a recorded reason.

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
        return Outcome(job, reason=f"{type(error).__name__}: {first}")


def build_executor(spec: WorkerSpec) -> Executor:
    """The executor that the campaign's `workers` section asks for.

    Raises:
        InputError: models or tasks cannot be loaded, or the cluster cannot be reached.
    """
    if not spec.config.workers.on_ray:
        return LocalExecutor(spec)
    from evomerge.workers.ray import RayExecutor

    return RayExecutor(spec)
