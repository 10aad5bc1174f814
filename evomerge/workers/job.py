"""Jobs in, outcomes out, in the order in which they are done: the interface of all executors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from evomerge.common.errors import EvomergeError, InputError, StoppedError
from evomerge.recipe import Recipe
from evomerge.workers.faults import is_device_fault, is_machine_fault
from evomerge.workers.worker import Gradient, Measurement, Worker


@dataclass(frozen=True)
class Job:
    """A recipe to measure on a split.

    Attributes:
        ticket: the candidate's number; a candidate has one job at a time.
        items: task → ids of the split's items to measure; None for all.
        last: the candidate will have no further attempt.
        record_weights: the weights that were scored are recorded, too: a pass over all of them.
        task: what to do: score the items, compute the losses of their documents, or differentiate
            these too; the last two on given items of the search split.
        task_weights: of the tasks' losses in the sum that is differentiated.
    """

    ticket: int
    recipe: Recipe
    split: str
    items: Mapping[str, Sequence[str]] | None = None
    last: bool = False
    record_weights: bool = False
    task: Literal["score", "losses", "gradient"] = "score"
    task_weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def methods(self) -> set[str]:
        """The names of the recipe's merge methods."""
        return {merge.method for merge in self.recipe.merges}

    def count_items(self, sizes: Mapping[str, int]) -> int:
        """Return how many items the job measures; a backward pass counts as two more of each.

        Args:
            sizes: split → number of its items.
        """
        if self.items is None:
            return sizes[self.split]
        return sum(map(len, self.items.values())) * (3 if self.task == "gradient" else 1)


@dataclass(frozen=True)
class Outcome:
    """The result of a job: a measurement or a gradient, or the reason why there is none.

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
    gradient: Gradient | None = None

    def check_machine(self) -> None:
        """Give up where the machine is at fault, and there is no other.

        Raises:
            EvomergeError: it is.
        """
        if self.machine_fault:
            raise EvomergeError(f"this machine is at fault: {self.reason}; mend it and go on")


@dataclass(frozen=True)
class Event:
    """Something that happened to workers or machines.

    Attributes:
        kind: is counted in the study; kinds keep their names.
        text: one line for people; empty where it is not worth one.
    """

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
        """How many workers stand."""

    @property
    def free(self) -> int:
        """How many jobs could be begun now."""

    def submit(self, job: Job) -> None:
        """Begin a job; a worker must be free."""

    def wait(self) -> Outcome | None:
        """Return the next outcome; None when there is none yet, but `free` may have changed.

        Raises:
            InputError: the input is wrong for every candidate.
        """

    def drain_events(self) -> list[Event]:
        """Return what happened since the last call, and forget it."""

    def close(self) -> None:
        """Let the workers go."""


def perform(worker: Worker, job: Job) -> Outcome:
    """Let a worker do what a job asks for."""
    if job.task == "score":
        part = () if job.items is None else (job.items,)
        found = worker.measure(job.recipe, job.split, *part)
        if job.record_weights:
            found = replace(found, weights=worker.weights(job.recipe))
        return Outcome(job, found)
    assert job.items is not None, "losses are of given items"
    if job.task == "losses":
        return Outcome(job, gradient=worker.losses(job.recipe, job.items))
    return Outcome(job, gradient=worker.gradient(job.recipe, job.items, job.task_weights))


def attempt(job: Job, do: Callable[[Job], Outcome]) -> Outcome:
    """Do a job, and turn whatever goes wrong into an outcome that says whose fault it is.

    Raises:
        InputError: the input is wrong for every candidate.
        StoppedError: the campaign cannot go on, through no fault of a candidate.
    """
    try:
        return do(job)
    except (InputError, StoppedError):
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
