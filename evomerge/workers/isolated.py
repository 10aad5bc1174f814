"""The executor of one worker in a process of its own, which is kept, and replaced where it must be.

Whatever a candidate or somebody's code does to that process (a hang, `os._exit`, a segmentation
fault, a bus error under a file that was cut short, memory that is never given back), the driver
lives: it takes the attempt as lost and starts another worker.
"""

from __future__ import annotations

import atexit
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import psutil

from evomerge.common.errors import EvomergeError
from evomerge.config import CampaignConfig
from evomerge.workers.devices import device_of
from evomerge.workers.job import Event, Job, Outcome, attempt, perform
from evomerge.workers.timeouts import Timeouts
from evomerge.workers.worker import Worker, WorkerSpec

EVERY = 0.5
"""Seconds between two looks at a worker that is busy."""
GROWTH, LEAST_GROWTH = 2.0, 2 << 30
"""`workers.memory: auto`: a worker may grow to so many times what it took after its first job, and
by so many bytes at least."""
SHORT = 0.05
"""`workers.memory: auto`: if less of the machine's memory than this part is available, a worker
that has grown so far is ended even in the middle of a job."""
PATIENCE = 5.0
"""Seconds in which an idle worker may end by itself, tidily."""
STARTS = 3
"""Times in a row that a worker may die before it stands."""
_IMPORTED = [
    "evomerge.fitness.tasks.task_set",
    "evomerge.fitness.inference.local_model",
    "evomerge.materialize.memory.resident",
    "evomerge.materialize.statistics.store",
    "evomerge.models.open_models",
]
"""Modules that take a worker's process most of the time of its start."""

_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Devices of NVIDIA's and AMD's drivers, and of Windows' in its Linux."""


class WorkerDied(Exception):  # noqa: N818
    """The worker's process is gone; the text says of what."""


class WorkerProcess:
    """A worker in a process of its own.

    Attributes:
        memory: bytes of its own after the first job that was done; 0 before.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        """Start the process; its first answer is None, or the error for which it cannot stand."""
        context: Any = multiprocessing.get_context(_method(spec.config))
        self._connection, theirs = context.Pipe()
        words, heard = context.Pipe(duplex=False)
        arguments = (theirs, heard, spec, dict(os.environ))
        # not a daemon: a worker may have processes of its own (a DataLoader's, a server's)
        self._process = context.Process(target=_serve, args=arguments, name="evomerge worker")
        with _no_main_module():
            self._process.start()
        atexit.register(self._process.kill)
        theirs.close()
        heard.close()
        threading.Thread(target=_pass_on, args=(words,), daemon=True).start()
        self.memory = 0

    def send(self, job: Job) -> None:
        """Let the worker begin a job.

        Raises:
            WorkerDied: there is none any more.
        """
        try:
            self._connection.send(job)
        except OSError:
            raise WorkerDied(self._cause()) from None

    def ready(self, seconds: float) -> bool:
        """Wait so long for an answer; True once there is one, or the worker has died."""
        return self._connection.poll(seconds)

    def answer(self) -> Outcome | EvomergeError | None:
        """Return the answer, waiting for it.

        Raises:
            WorkerDied: there will be none.
        """
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise WorkerDied(self._cause()) from None

    def own_memory(self) -> int:
        """Bytes that this process alone takes: not the pages of files that are mapped."""
        try:
            found = psutil.Process(self._process.pid).memory_info()
        except psutil.Error:
            return 0
        return found.rss - getattr(found, "shared", 0)

    def end(self, patience: float = 0.0) -> None:
        """End the process, whatever it does.

        Args:
            patience: seconds in which it may end by itself; it does if it is idle.
        """
        if patience:
            with suppress(OSError):
                self._connection.send(None)
            self._process.join(patience)
        self._process.kill()
        self._process.join()
        self._connection.close()
        atexit.unregister(self._process.kill)

    def _cause(self) -> str:
        self._process.join(10)
        code = self._process.exitcode
        if code is None or code == 255:
            return "its worker died"
        if code >= 0:
            return f"its worker ended itself (exit code {code})"
        name = signal.Signals(-code).name
        about = {
            "SIGBUS": "a file under it was cut short, or cannot be read any more",
            "SIGKILL": "by the system if memory ran out, or by somebody",
        }.get(name)
        return f"its worker died of {name}" + (f": {about}" if about else "")


class IsolatedExecutor:
    """Keeps one worker in a process of its own."""

    isolated = True

    def __init__(self, spec: WorkerSpec) -> None:
        """Start the worker, and wait until it stands.

        Raises:
            InputError: models or tasks cannot be loaded.
            EvomergeError: the worker dies before it stands.
        """
        self._spec, self._config = spec, spec.config.workers
        self._timeouts = Timeouts()
        self._events: list[Event] = []
        self._job: Job | None = None
        self._since = 0.0
        self._limit: float | None = None
        self._worker: WorkerProcess | None = self._build()

    @property
    def workers(self) -> int:
        """1 while a worker stands, else 0."""
        return int(self._worker is not None)

    @property
    def free(self) -> int:
        """1 while there is no job, else 0."""
        return int(self._job is None)

    def submit(self, job: Job) -> None:
        """Send the job to the worker, a new one if there is none.

        Raises:
            EvomergeError: no worker can be started.
        """
        assert self._job is None, "the worker is taken"
        self._worker = self._worker or self._build()
        try:
            self._worker.send(job)
        except WorkerDied:  # it did while it was idle
            self._worker.end()
            self._worker = self._build()
            self._worker.send(job)
        self._job, self._since = job, time.monotonic()
        self._limit = self._timeouts.limit_of(job, self._spec.sizes, self._config.timeout)

    def wait(self) -> Outcome | None:
        """Return the outcome of the job; None if there is none after `EVERY` seconds.

        Raises:
            InputError: the input is wrong for every candidate.
            StoppedError: the models' files have changed.
            EvomergeError: this machine is at fault.
        """
        worker, job = self._worker, self._job
        assert worker is not None, "nothing was submitted"
        assert job is not None, "nothing was submitted"
        if not worker.ready(EVERY):
            return self._look(worker, job)
        try:
            found = worker.answer()
        except WorkerDied as error:
            return self._lose(job, "workers died", str(error))
        self._job = None
        if isinstance(found, EvomergeError):
            raise found
        assert found is not None, "only a worker that stands is asked"
        return self._take(worker, found)

    def drain_events(self) -> list[Event]:
        """Return what happened since the last call, and forget it."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.end(0.0 if self._job else PATIENCE)
        self._worker = None

    def _build(self) -> WorkerProcess:
        """Start a worker, and wait until it stands.

        Raises:
            InputError: models or tasks cannot be loaded.
            StoppedError: the models' files have changed.
            EvomergeError: the worker dies or hangs before it stands, again and again.
        """
        for _ in range(STARTS):
            worker, since = WorkerProcess(self._spec), time.monotonic()
            limit = self._timeouts.build_limit() if self._config.timeout else None
            stands = False
            try:
                while not worker.ready(EVERY):
                    if limit is not None and time.monotonic() - since > limit:
                        raise WorkerDied(f"its worker did not stand within {limit:.0f} s")
                found = worker.answer()
                if isinstance(found, EvomergeError):
                    raise found
                stands = True
                self._timeouts.record_build(time.monotonic() - since)
                return worker
            except WorkerDied as error:
                _check_files(self._spec)
                reason = str(error).removeprefix("its worker ")
            finally:
                if not stands:
                    worker.end()
        raise EvomergeError(
            f"the worker {reason}, {STARTS} times before it stood; `workers.isolated: false` "
            "builds it in the search's own process, where more can be seen"
        )

    def _look(self, worker: WorkerProcess, job: Job) -> Outcome | None:
        """End a worker that has hung or takes too much memory; None if it may go on."""
        if self._limit is not None and time.monotonic() - self._since > self._limit:
            return self._lose(job, "timed out", f"not done within {self._limit:.0f} s")
        excess = self._excess(worker, busy=True)
        return None if excess is None else self._lose(job, "workers out of memory", excess)

    def _take(self, worker: WorkerProcess, outcome: Outcome) -> Outcome:
        """Learn from an outcome, and let go of a worker that is of no further use.

        Raises:
            EvomergeError: this machine is at fault.
        """
        job, done = outcome.job, outcome.measurement
        outcome.check_machine()
        if done is not None:
            # 1. how long such work takes, and what the next worker should know of the engine
            self._timeouts.record_job(job, self._spec.sizes, done.seconds)
            known = self._spec.facts
            least = {name: min(value, known.get(name, value)) for name, value in done.facts.items()}
            self._spec = replace(self._spec, facts={**known, **least})
            # 2. what memory it takes
            worker.memory = worker.memory or worker.own_memory()
        # 3. after an error on a device a process cannot use it again
        if outcome.retryable:
            self._replace("workers died", str(outcome.reason))
        elif (excess := self._excess(worker, busy=False)) is not None:
            self._replace("workers replaced", excess)
        return outcome

    def _lose(self, job: Job, kind: str, reason: str) -> Outcome:
        """Give up a job with its worker.

        Raises:
            StoppedError: the models' files have changed, so this is no fault of the candidate.
        """
        self._replace(kind, f"{reason} (recipe {job.recipe.digest[:12]})")
        self._job = None
        _check_files(self._spec)
        return Outcome(job, reason=reason, retryable=True)

    def _replace(self, kind: str, text: str) -> None:
        """End the worker; the next job gets a new one."""
        self._events.append(Event(kind, text))
        self.close()

    def _excess(self, worker: WorkerProcess, busy: bool) -> str | None:
        """Say that the worker takes more memory than it may; None if it does not."""
        limit = self._config.memory
        if limit is None or (limit == "auto" and not worker.memory):
            return None
        own = worker.own_memory()
        if limit != "auto":
            said = f"its worker took {own / 1e9:.3g} GB of memory (workers.memory: {limit:g})"
            return said if own > limit * 1e9 else None
        if own <= max(GROWTH * worker.memory, worker.memory + LEAST_GROWTH):
            return None
        memory = psutil.virtual_memory()
        if busy and memory.available > SHORT * memory.total:
            return None
        return f"its worker grew from {worker.memory / 1e9:.3g} to {own / 1e9:.3g} GB of memory"


def measure_isolated(job: Job, spec: WorkerSpec) -> Outcome:
    """Measure a job in a new process, with a worker of its own.

    Raises:
        InputError: the input is wrong for every candidate.
        StoppedError: the campaign cannot go on, through no fault of a candidate.
    """
    worker = WorkerProcess(spec)
    try:
        found = worker.answer()
        if found is None:
            worker.send(job)
            found = worker.answer()
    except WorkerDied as error:
        _check_files(spec)
        return Outcome(job, reason=str(error), retryable=True)
    finally:
        worker.end()
    if isinstance(found, EvomergeError):
        raise found
    assert found is not None, "a worker that stands answers with outcomes"
    return found


def _check_files(spec: WorkerSpec) -> None:
    """Refuse to go on where the models' files have changed since the campaign began.

    Raises:
        StoppedError: names the file.
    """
    from evomerge.models.checks.unchanged import check_unchanged  # late: it imports torch

    check_unchanged(spec.files)


def begin_imports(config: CampaignConfig) -> None:
    """Begin to import what an isolated worker needs, beside what the driver itself imports."""
    workers = config.workers
    if workers.isolated and not workers.on_ray and _can_fork():
        multiprocessing.get_context("forkserver").set_forkserver_preload(_IMPORTED)
        with _no_main_module():
            forkserver.ensure_running()


def _method(config: CampaignConfig) -> str:
    """Return how processes are started.

    Where it can be, all are forked from one in which nothing but the imports has happened, so that
    a worker is replaced at once.
    """
    if not _can_fork() or device_of(config) != "cpu":
        return "spawn"
    multiprocessing.get_context("forkserver").set_forkserver_preload(_IMPORTED)
    return "forkserver"


def _can_fork() -> bool:
    """Say no where forks are not safe, and where there are GPUs, of which a fork has no use.

    This does not import torch, which takes seconds.
    """
    return sys.platform == "linux" and not any(map(os.path.exists, _GPUS))


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide the driver's script, which a new process would run a second time."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _pass_on(words: Connection) -> None:
    """Write what a worker prints to standard error, where a progress display makes room for it."""
    with suppress(OSError, ValueError), open(words.fileno(), closefd=False, errors="replace") as it:
        for line in it:
            sys.stderr.write(line)
    words.close()


def _serve(
    connection: Connection, words: Connection, spec: WorkerSpec, environment: Mapping[str, str]
) -> None:
    """Build a worker, say so or why not, and do jobs until the driver is gone."""
    # 1. Signals for the whole group are for the driver, which stops in order, and then this process
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    # 2. if memory runs out, the system is to choose this process
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")
    # 3. what is printed goes to the driver, and so does a trace of what a signal interrupts
    os.environ.update(environment)
    os.dup2(words.fileno(), 1)
    os.dup2(words.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.enable()
    # 4. jobs
    try:
        worker = Worker(spec)
    except EvomergeError as error:
        connection.send(error)
        return
    connection.send(None)
    while True:
        job = connection.recv()
        if job is None:
            return
        found: Outcome | EvomergeError
        try:
            found = attempt(job, partial(perform, worker))
        except EvomergeError as error:
            found = error
        connection.send(found)


def _end_with_driver() -> None:
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)
