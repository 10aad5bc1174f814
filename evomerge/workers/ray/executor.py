"""The executor on Ray: its workers are actors, which come and go with the nodes of a cluster."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray
from ray.exceptions import OutOfDiskError, RayError, RayTaskError

from evomerge.common.errors import EvomergeError, InputError
from evomerge.models.checks.unchanged import check_unchanged
from evomerge.workers.job import Event, Job, Outcome
from evomerge.workers.ray.actor import Actor, Refusal, own_versions
from evomerge.workers.ray.cluster import (
    DISK_FULL,
    NODE_LOST,
    begin_death_notice,
    cause,
    check_own_ray,
    death,
    end_death_notice,
    join,
    last_line,
    start_file_server,
)
from evomerge.workers.ray.file_copies import file_sets_of
from evomerge.workers.ray.nodes import EVERY, Nodes
from evomerge.workers.timeouts import Timeouts
from evomerge.workers.worker import WorkerSpec

AGAIN = 5.0
"""Seconds until a worker that died before it had a node is started again."""
PAUSE = 0.5
"""Seconds between a worker's death and a look at Ray itself."""
LONG = 30.0
"""Seconds without a first worker until a warning is logged."""

_LOGGER = logging.getLogger(__name__)


State = Literal["empty", "placed", "building", "idle", "busy"]


@dataclass(eq=False)
class WorkerSlot:
    """One of the executor's workers, present or to come.

    Attributes:
        state: `empty`; `placed`: Ray looks for a node; `building`: the worker loads models and
            tasks there; `idle`; `busy`.
        answer: Ray's reference to the answer that is awaited of the actor.
        shunned: the nodes to which the actor may not go.
        node: Ray's id of its node, once it is known.
        since: when the state began, on the monotonic clock; of an empty slot, when it may end.
        limit: seconds that the state may last; None for no limit.
        written: digest of the recipe that the worker has written last.
    """

    state: State = "empty"
    actor: Any = None
    answer: Any = None
    shunned: frozenset[str] = frozenset()
    node: str = ""
    since: float = field(default_factory=time.monotonic)
    limit: float | None = None
    job: Job | None = None
    written: str = ""

    def enter(self, state: State, answer: Any = None) -> None:
        """Begin a state, without a limit."""
        self.state, self.answer, self.limit, self.since = state, answer, None, time.monotonic()

    @property
    def overdue(self) -> bool:
        """Whether the state has lasted longer than it may."""
        return self.limit is not None and time.monotonic() - self.since > self.limit


class RayExecutor:
    """Keeps an actor in every slot.

    A worker that dies is built anew wherever there is room, and its job comes back as retryable.
    Nothing here waits for one worker while others could work.
    """

    isolated = True

    def __init__(self, spec: WorkerSpec) -> None:
        """Start or join Ray, and wait for the first worker.

        Raises:
            InputError: the cluster cannot be reached or has no room, or no node can load models
                and tasks.
            EvomergeError: workers die before they stand.
        """
        self._config, self._files = spec.config.workers, spec.files
        self._sizes = spec.sizes
        self._timeouts = Timeouts()
        self._slots: list[WorkerSlot] = []
        self._events: list[Event] = []
        self._outcomes: deque[Outcome] = deque()
        self._failures: list[EvomergeError] = []  # of workers that never stood
        self._file_server: Any = None
        self._owns_ray = not ray.is_initialized()
        self._notice = None
        if self._owns_ray:
            join(spec)
        try:
            if self._owns_ray and self._config.address is None:
                self._notice = begin_death_notice()
            cluster = self._config.address or self._config.count == "auto"
            self._nodes = Nodes(self._config, None if cluster else spec.threads)
            self._check_room()
            file_sets = file_sets_of(spec.config) if self._config.copy_to else {}
            if file_sets:
                self._file_server = start_file_server(file_sets)
            given = ray.put(replace(spec, threads=self._nodes.threads))
            self._build_arguments = (given, own_versions(), file_sets, self._file_server)
            self._await_first_worker()
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:
        """How many workers stand."""
        return sum(slot.state in ("idle", "busy") for slot in self._slots)

    @property
    def free(self) -> int:
        """How many workers are idle."""
        return sum(slot.state == "idle" for slot in self._slots)

    def submit(self, job: Job) -> None:
        """Send the job to an idle worker, if possible to the one that wrote its recipe last."""
        idle = [slot for slot in self._slots if slot.state == "idle"]
        slot = next((one for one in idle if one.written == job.recipe.digest), idle[0])
        slot.enter("busy", slot.actor.measure.remote(job))
        slot.job, slot.written = job, job.recipe.digest
        slot.limit = self._timeouts.limit_of(job, self._sizes, self._config.timeout)

    def wait(self) -> Outcome | None:
        """Return the first outcome; None after `EVERY` seconds at the latest.

        Raises:
            InputError: the input is wrong for every candidate.
            StoppedError: the models' files have changed, or the Ray that this executor started has
                ended.
        """
        if self._notice is not None:
            check_own_ray()
        self._tend_slots()
        awaited = {slot.answer: slot for slot in self._slots if slot.answer is not None}
        if self._outcomes:
            return self._outcomes.popleft()
        if not awaited:
            time.sleep(EVERY)
            return None
        ready, _ = ray.wait([*awaited], num_returns=1, timeout=EVERY)
        for answer in ready:
            self._receive(awaited[answer])
        return self._outcomes.popleft() if self._outcomes else None

    def drain_events(self) -> list[Event]:
        """Return what happened since the last call, and forget it."""
        events, self._events = [*self._events, *self._nodes.drain_events()], []
        return events

    def close(self) -> None:
        """Stop the actors, and Ray itself if this executor started it."""
        for actor in [self._file_server, *(slot.actor for slot in self._slots)]:
            if actor is not None:
                ray.kill(actor)
        if self._notice is not None:
            end_death_notice(self._notice)
        if self._owns_ray:
            ray.shutdown()

    def _check_room(self) -> None:
        """Refuse resources that the cluster does not have, for which Ray would wait for ever.

        Raises:
            InputError: says what Ray has.
        """
        workers, threads = self._config, self._nodes.threads
        if workers.address is None and workers.count != "auto":
            there = ray.cluster_resources()
            for resource, each in {"CPU": float(threads), "GPU": workers.gpus_per_worker}.items():
                if each * workers.count > there.get(resource, 0):
                    raise InputError(
                        f"workers: {workers.count} × {each:g} {resource} asked for, "
                        f"but Ray has {there.get(resource, 0):g}; ask for less, or add nodes"
                    )
        if not self._nodes.room:
            raise InputError(
                f"workers: no node of the cluster has room for one of {threads} CPU and "
                f"{workers.gpus_per_worker:g} GPU; ask for less, or add nodes"
            )

    def _await_first_worker(self) -> None:
        """Wait until a worker stands.

        Raises:
            InputError: no node can load the user's models and tasks.
            EvomergeError: workers die before they stand, again and again.
        """
        began, warned = time.monotonic(), False
        while not self.workers:
            self.wait()
            if any(slot.state == "building" for slot in self._slots):
                continue
            given = [e for e in self._failures if isinstance(e, InputError)]
            if given and not self._nodes.usable:
                raise given[-1]
            if len(self._failures) > 2 * len(self._slots):
                raise self._failures[-1]
            if not warned and time.monotonic() - began > LONG:
                _LOGGER.warning("Ray has no process for a worker yet: is the cluster taken?")
                warned = True

    def _tend_slots(self) -> None:
        """Time out hung workers, and start one for every empty slot."""
        self._nodes.look()
        self._resize()
        quarantined = self._nodes.quarantined
        for slot in self._slots:
            if slot.overdue:
                self._time_out(slot)
            elif slot.state == "placed" and slot.shunned != quarantined:
                self._stop_actor(slot)
            elif slot.state == "idle" and not self._nodes.is_there(slot.node):
                self._stop_actor(slot)  # Ray reports a death only where an answer is awaited
            if slot.state == "empty" and time.monotonic() >= slot.since:
                self._start_actor(slot, quarantined)

    def _resize(self) -> None:
        """Have as many slots as the campaign file asks for, or as the cluster has room for."""
        count = self._config.count
        wanted = self._nodes.room if count == "auto" else count
        self._slots += [WorkerSlot() for _ in range(wanted - len(self._slots))]
        for slot in [s for s in self._slots if s.state in ("empty", "placed")][::-1]:
            if len(self._slots) > wanted:
                self._stop_actor(slot)
                self._slots.remove(slot)

    def _start_actor(self, slot: WorkerSlot, quarantined: frozenset[str]) -> None:
        """Ask Ray for an actor on any node but these, and for the node's id."""
        options: dict[str, Any] = {
            "num_cpus": self._nodes.threads,
            "num_gpus": self._config.gpus_per_worker,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        if quarantined:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(quarantined))})"}
        slot.actor = ray.remote(Actor).options(**options).remote()
        slot.shunned, slot.node, slot.written = quarantined, "", ""
        slot.enter("placed", slot.actor.where.remote())

    def _stop_actor(self, slot: WorkerSlot, pause: float = 0.0) -> None:
        """End the slot's actor, if there is one; another may come after `pause` seconds."""
        if slot.actor is not None:
            ray.kill(slot.actor)
        slot.actor, slot.job = None, None
        slot.enter("empty")
        slot.since += pause

    def _receive(self, slot: WorkerSlot) -> None:
        """Act on an actor's answer, or on its death.

        Raises:
            InputError: the input is wrong for every candidate.
        """
        try:
            found = ray.get(slot.answer)
        except RayTaskError as error:
            raise cause(error) from None
        except RayError as error:
            self._record_death(slot, error)
            return
        if slot.state == "placed":
            slot.node = found
            slot.enter("building", slot.actor.build.remote(*self._build_arguments))
            slot.limit = self._timeouts.build_limit() if self._config.timeout else None
        elif slot.state == "busy":
            self._finish_job(slot, found)
        elif found is None:
            self._timeouts.record_build(time.monotonic() - slot.since)
            slot.enter("idle")
            self._events.append(Event("workers joined"))
        else:
            self._record_refusal(slot, found)

    def _finish_job(self, slot: WorkerSlot, outcome: Outcome) -> None:
        """Queue an outcome, and free, stop or quarantine as it says."""
        job, done = outcome.job, outcome.measurement
        if outcome.gradient is not None:
            self._nodes.clear(slot.node)
        if done is not None:
            self._timeouts.record_job(job, self._sizes, done.seconds)
            self._nodes.clear(slot.node)
        if not outcome.retryable:
            slot.job = None
            slot.enter("idle")
        elif outcome.machine_fault:
            self._nodes.quarantine(slot.node, str(outcome.reason))
            self._stop_actor(slot)
        else:
            self._report(slot, "workers died", str(outcome.reason))
            self._stop_actor(slot)
        self._outcomes.append(outcome)

    def _record_refusal(self, slot: WorkerSlot, refusal: Refusal) -> None:
        """Quarantine a node on which no worker can be built."""
        if not self.workers:
            kind = InputError if refusal.given else EvomergeError
            self._failures.append(kind(refusal.reason))
        self._nodes.quarantine(slot.node, refusal.reason)
        self._stop_actor(slot)

    def _record_death(self, slot: WorkerSlot, error: RayError) -> None:
        """Handle a worker that is gone: in the middle of a job, or before it stood.

        Raises:
            StoppedError: neither it nor its job is at fault, see `wait`.
        """
        check_unchanged(self._files)
        if self._notice is not None:
            time.sleep(PAUSE)  # the raylet, if it is the cause, ends a moment later
            check_own_ray()
        kind, reason = death(error)
        if slot.state != "placed":
            self._report(slot, kind, reason)
        if slot.job is not None:
            machine_fault = isinstance(error, OutOfDiskError)
            self._outcomes.append(
                Outcome(slot.job, reason=reason, retryable=True, machine_fault=machine_fault)
            )
        else:
            self._failures.append(EvomergeError(f"a Ray worker did not start: {last_line(error)}"))
        if slot.node and (slot.state == "building" or kind in (NODE_LOST, DISK_FULL)):
            self._nodes.quarantine(slot.node, None if kind == NODE_LOST else reason)
        self._stop_actor(slot, AGAIN if slot.state == "placed" else 0.0)

    def _time_out(self, slot: WorkerSlot) -> None:
        """Stop a worker that has hung."""
        if slot.state == "building":
            self._nodes.quarantine(slot.node, f"no worker stood within {slot.limit:.0f} s")
        elif slot.job is not None:
            reason = f"not done within {slot.limit:.0f} s"
            self._report(slot, "timed out", reason)
            self._outcomes.append(Outcome(slot.job, reason=reason, retryable=True))
        self._stop_actor(slot)

    def _report(self, slot: WorkerSlot, kind: str, reason: str) -> None:
        recipe = f" (recipe {slot.job.recipe.digest[:12]})" if slot.job else ""
        self._events.append(Event(kind, f"node {self._nodes.name(slot.node)}: {reason}{recipe}"))
