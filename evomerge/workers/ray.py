"""Workers as Ray actors, on this machine or a cluster."""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from evomerge.errors import EvomergeError, InputError
from evomerge.workers.executor import Job, Outcome, attempt
from evomerge.workers.worker import Worker, WorkerSpec


class _Actor:
    """The worker inside its actor; candidates' failures come back as outcomes, not exceptions."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker = Worker(spec)

    def measure(self, job: Job) -> Outcome:
        return attempt(job, self._worker.measure)

    def ready(self) -> bool:
        return True


class RayExecutor:
    """One actor per slot. An actor that dies is built anew; its job comes back as lost."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Start or join Ray and build the actors.

        Raises:
            InputError: the cluster cannot be reached, or an actor cannot load models or tasks.
        """
        self.slots = spec.config.workers.count
        self._spec = spec
        self._jobs: dict[Any, Job] = {}
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _start(spec)
        self._actors: list[Any] = []
        try:
            _check_room(spec)
            self._actors = [self._build() for _ in range(self.slots)]
            _await(self._actors)
        except EvomergeError:
            self.close()
            raise

    def submit(self, job: Job) -> None:
        """Send the job to its slot's actor."""
        self._jobs[self._actors[job.slot].measure.remote(job)] = job

    def wait(self) -> Outcome:
        """The first job to come back.

        Raises:
            InputError: the task cannot be scored, whatever the candidate.
            EvomergeError: a worker that died cannot be built anew.
        """
        [done], _ = ray.wait(list(self._jobs), num_returns=1)
        job = self._jobs.pop(done)
        try:
            return ray.get(done)
        except (RayActorError, OutOfMemoryError) as error:
            # An out-of-memory kill may leave the actor, a crash does not: start afresh after both.
            ray.kill(self._actors[job.slot])
            self._actors[job.slot] = self._build()
            _await([self._actors[job.slot]])
            kind = "killed: out of memory" if isinstance(error, OutOfMemoryError) else "died"
            return Outcome(job, reason=f"its worker {kind}", lost=True)
        except RayTaskError as error:
            raise _cause(error) from None

    def close(self) -> None:
        """Stop the actors, and Ray itself if this executor started it."""
        for actor in self._actors:
            ray.kill(actor)
        if self._owns_ray:
            ray.shutdown()

    def _build(self) -> Any:
        workers = self._spec.config.workers
        options = {
            "num_cpus": self._spec.threads,
            "num_gpus": workers.gpus_per_worker,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        return ray.remote(_Actor).options(**options).remote(self._spec)


def _check_room(spec: WorkerSpec) -> None:
    """Ray waits for ever for resources that the cluster does not have; say so instead."""
    workers, there = spec.config.workers, ray.cluster_resources()
    needs = {"CPU": float(spec.threads), "GPU": workers.gpus_per_worker}
    for resource, each in needs.items():
        if each * workers.count > there.get(resource, 0):
            raise InputError(
                f"workers: {workers.count} × {each:g} {resource} asked for, "
                f"but Ray has {there.get(resource, 0):g}; ask for less, or add nodes"
            )


def _await(actors: list[Any]) -> None:
    """Until the actors' workers stand.

    Raises:
        EvomergeError: one cannot be built; an `InputError` if its input is to blame.
    """
    try:
        ray.get([actor.ready.remote() for actor in actors])
    except RayTaskError as error:
        raise _cause(error) from None
    except RayActorError as error:
        raise EvomergeError(f"a Ray worker did not start: {_last_line(error)}") from None


def _cause(error: RayTaskError) -> EvomergeError:
    """What went wrong inside the actor."""
    if isinstance(error.cause, EvomergeError):
        return error.cause
    return EvomergeError(f"a Ray worker failed: {error.cause!r}")


def _start(spec: WorkerSpec) -> None:
    address = spec.config.workers.address
    local = {} if address else {"num_cpus": spec.threads * spec.config.workers.count}
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **local,
        )
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise InputError(f"workers.address: cannot reach Ray at {address!r}: {error}") from None


def _last_line(error: RayActorError) -> str:
    """The line of an actor's failure that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):
        if "Error: " in line:
            return line.partition("Error: ")[2]
    return lines[-1] if lines else "no reason given"
