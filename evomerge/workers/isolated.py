"""A job measured in a process of its own, so that its death does not take the driver's with it."""

from __future__ import annotations

import multiprocessing
from functools import partial
from multiprocessing.connection import Connection

from evomerge.common.errors import EvomergeError
from evomerge.workers.job import Job, Outcome, attempt, perform
from evomerge.workers.worker import Worker, WorkerSpec


def measure_isolated(job: Job, spec: WorkerSpec) -> Outcome:
    """Measure a job in a new process, with a worker of its own.

    Raises:
        InputError: the input is wrong for every candidate.
        StoppedError: the campaign cannot go on, through no fault of a candidate.
    """
    context = multiprocessing.get_context("spawn")  # a fork has no use of CUDA
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(theirs, job, spec), daemon=True)
    process.start()
    theirs.close()
    try:
        found: Outcome | EvomergeError = ours.recv()
    except EOFError:
        return Outcome(job, reason="its worker died", retryable=True)
    finally:
        ours.close()
        process.kill()
        process.join()
    if isinstance(found, EvomergeError):
        raise found
    return found


def _measure(connection: Connection, job: Job, spec: WorkerSpec) -> None:
    found: Outcome | EvomergeError
    try:
        found = attempt(job, partial(perform, Worker(spec)))
    except EvomergeError as error:
        found = error
    connection.send(found)
