"""Workers as Ray actors, on this machine or a cluster; they come and go as nodes do."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray
from ray.exceptions import OutOfDiskError, RayError, RayTaskError

from evomerge.common.errors import EvomergeError, InputError
from evomerge.workers.build import Event, Job, Outcome
from evomerge.workers.ray.actor import Actor, Refusal, own_versions
from evomerge.workers.ray.cluster import DISK_FULL, NODE_LOST, cause, death, join, last_line, porter
from evomerge.workers.ray.file_copies import parcels_of
from evomerge.workers.ray.nodes import EVERY, Nodes
from evomerge.workers.timeouts import Timeouts
from evomerge.workers.worker import WorkerSpec

AGAIN = 5.0
"""Seconds until a worker that died before it had a node is tried again."""
LONG = 30.0
"""Seconds without a first worker after which the log says what is waited for."""

_LOGGER = logging.getLogger(__name__)


State = Literal["empty", "placed", "building", "idle", "busy"]


@dataclass(eq=False)
class WorkerSlot:
    """Where one worker is, or is to be.

    Attributes:
        state: `empty`; `placed`: Ray looks for a node; `building`: it loads models and tasks there;
            `idle`; `busy`.
        answer: Ray's reference to what is awaited of the actor.
        apart_from: the nodes that it was not to go to.
        node: Ray's id, once it is known.
        since: when the state began, on the monotonic clock; of an empty one, when it may end.
        limit: seconds that the state may last; None: any time.
        written: digest of the recipe that the worker has written last.
    """

    state: State = "empty"
    actor: Any = None
    answer: Any = None
    apart_from: frozenset[str] = frozenset()
    node: str = ""
    since: float = field(default_factory=time.monotonic)
    limit: float | None = None
    job: Job | None = None
    written: str = ""

    def enter(self, state: State, answer: Any = None) -> None:
        """Begin a state, which has no limit yet."""
        self.state, self.answer, self.limit, self.since = state, answer, None, time.monotonic()

    @property
    def overdue(self) -> bool:
        """Whether the state has lasted longer than it may."""
        return self.limit is not None and time.monotonic() - self.since > self.limit


class RayExecutor:
    """Actors in places. One that is lost is built anew, wherever there is room; its job comes back
    as lost. Nothing here waits for one worker while others could work.
    """

    isolated = True

    def __init__(self, spec: WorkerSpec) -> None:
        """Start or join Ray, and wait for the first worker.

        Raises:
            InputError: the cluster cannot be reached or has no room, or no node can load models
                and tasks.
            EvomergeError: workers die before they stand.
        """
        self._config = spec.config.workers
        self._sizes = {s: sum(map(len, tasks.values())) for s, tasks in spec.items.items()}
        self._patience = Timeouts()
        self._places: list[WorkerSlot] = []
        self._events: list[Event] = []
        self._outcomes: deque[Outcome] = deque()
        self._failures: list[EvomergeError] = []  # of workers that never stood
        self._porter: Any = None
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            join(spec)
        try:
            cluster = self._config.address or self._config.count == "auto"
            self._nodes = Nodes(self._config, None if cluster else spec.threads)
            self._check_room()
            parcels = parcels_of(spec.config) if self._config.copy_to else {}
            if parcels:
                self._porter = porter(parcels)
            given = ray.put(replace(spec, threads=self._nodes.threads))
            self._plans = (given, own_versions(), parcels, self._porter)
            self._await_the_first()
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:
        """How many stand."""
        return sum(place.state in ("idle", "busy") for place in self._places)

    @property
    def free(self) -> int:
        """How many are idle."""
        return sum(place.state == "idle" for place in self._places)

    def submit(self, job: Job) -> None:
        """Send the job to an idle worker, if possible to the one that wrote its recipe last."""
        idle = [place for place in self._places if place.state == "idle"]
        place = next((p for p in idle if p.written == job.recipe.digest), idle[0])
        place.enter("busy", place.actor.measure.remote(job))
        place.job, place.written = job, job.recipe.digest
        place.limit = self._timeout(self._patience.to_measure(_methods(job), self._items(job)))

    def wait(self) -> Outcome | None:
        """The first job to come back; None after `EVERY` seconds at the latest.

        Raises:
            InputError: the task cannot be scored, whatever the candidate.
        """
        self._look_after()
        awaited = {place.answer: place for place in self._places if place.answer is not None}
        if self._outcomes:
            return self._outcomes.popleft()
        if not awaited:
            time.sleep(EVERY)
            return None
        ready, _ = ray.wait([*awaited], num_returns=1, timeout=EVERY)
        for answer in ready:
            self._take(awaited[answer])
        return self._outcomes.popleft() if self._outcomes else None

    def drain_events(self) -> list[Event]:
        """What happened since the last call."""
        events, self._events = [*self._events, *self._nodes.drain_events()], []
        return events

    def close(self) -> None:
        """Stop the actors, and Ray itself if this executor started it."""
        for actor in [self._porter, *(place.actor for place in self._places)]:
            if actor is not None:
                ray.kill(actor)
        if self._owns_ray:
            ray.shutdown()

    def _check_room(self) -> None:
        """Ray waits for ever for resources that the cluster does not have; say so instead."""
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

    def _await_the_first(self) -> None:
        """Until a worker stands.

        Raises:
            InputError: no node can load what the user gave.
            EvomergeError: workers die before they stand, again and again.
        """
        began, warned = time.monotonic(), False
        while not self.workers:
            self.wait()
            if any(place.state == "building" for place in self._places):
                continue
            given = [e for e in self._failures if isinstance(e, InputError)]
            if given and not self._nodes.usable:
                raise given[-1]
            if len(self._failures) > 2 * len(self._places):
                raise self._failures[-1]
            if not warned and time.monotonic() - began > LONG:
                _LOGGER.warning("Ray has no process for a worker yet: is the cluster taken?")
                warned = True

    def _look_after(self) -> None:
        """Give up what has hung, and see that every place has a worker or is about to."""
        self._nodes.look()
        self._resize()
        alone = self._nodes.left_alone
        for place in self._places:
            if place.overdue:
                self._give_up(place)
            elif place.state == "placed" and place.apart_from != alone:
                self._vacate(place)
            elif place.state == "idle" and not self._nodes.is_there(place.node):
                self._vacate(place)  # Ray tells only of those from whom an answer is awaited
            if place.state == "empty" and time.monotonic() >= place.since:
                self._settle(place, alone)

    def _resize(self) -> None:
        """As many places as the campaign file asks for, or as the cluster has room for."""
        count = self._config.count
        wanted = self._nodes.room if count == "auto" else count
        self._places += [WorkerSlot() for _ in range(wanted - len(self._places))]
        for place in [p for p in self._places if p.state in ("empty", "placed")][::-1]:
            if len(self._places) > wanted:
                self._vacate(place)
                self._places.remove(place)

    def _settle(self, place: WorkerSlot, alone: frozenset[str]) -> None:
        options: dict[str, Any] = {
            "num_cpus": self._nodes.threads,
            "num_gpus": self._config.gpus_per_worker,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        if alone:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(alone))})"}
        place.actor = ray.remote(Actor).options(**options).remote()
        place.apart_from, place.node, place.written = alone, "", ""
        place.enter("placed", place.actor.where.remote())

    def _vacate(self, place: WorkerSlot, pause: float = 0.0) -> None:
        """End the place's worker, if there is one; another may come after `pause` seconds."""
        if place.actor is not None:
            ray.kill(place.actor)
        place.actor, place.job = None, None
        place.enter("empty")
        place.since += pause

    def _take(self, place: WorkerSlot) -> None:
        """What a place's worker answered, or that there is none any more.

        Raises:
            InputError: what is wrong is wrong for every candidate.
        """
        try:
            found = ray.get(place.answer)
        except RayTaskError as error:
            raise cause(error) from None
        except RayError as error:
            self._lose(place, error)
            return
        if place.state == "placed":
            place.node = found
            place.enter("building", place.actor.build.remote(*self._plans))
            place.limit = self._patience.to_build() if self._config.timeout else None
        elif place.state == "busy":
            self._land(place, found)
        elif found is None:
            self._patience.built(time.monotonic() - place.since)
            place.enter("idle")
            self._events.append(Event("workers joined"))
        else:
            self._refuse(place, found)

    def _land(self, place: WorkerSlot, outcome: Outcome) -> None:
        """An evaluation is done, well or not."""
        job, done = outcome.job, outcome.measurement
        if done is not None:
            self._patience.measured(_methods(job), self._items(job), done.seconds)
            self._nodes.proved(place.node)
        if not outcome.retryable:
            place.job = None
            place.enter("idle")
        elif outcome.machine_fault:
            self._nodes.leave_alone(place.node, str(outcome.reason))
            self._vacate(place)
        else:
            self._tell(place, "workers died", str(outcome.reason))
            self._vacate(place)
        self._outcomes.append(outcome)

    def _refuse(self, place: WorkerSlot, refusal: Refusal) -> None:
        """A node on which no worker can be built."""
        if not self.workers:
            kind = InputError if refusal.given else EvomergeError
            self._failures.append(kind(refusal.reason))
        self._nodes.leave_alone(place.node, refusal.reason)
        self._vacate(place)

    def _lose(self, place: WorkerSlot, error: RayError) -> None:
        """A worker is gone: in the middle of an evaluation, or before it stood."""
        kind, reason = death(error)
        if place.state != "placed":
            self._tell(place, kind, reason)
        if place.job is not None:
            machine_fault = isinstance(error, OutOfDiskError)
            self._outcomes.append(
                Outcome(place.job, reason=reason, retryable=True, machine_fault=machine_fault)
            )
        else:
            self._failures.append(EvomergeError(f"a Ray worker did not start: {last_line(error)}"))
        if place.node and (place.state == "building" or kind in (NODE_LOST, DISK_FULL)):
            self._nodes.leave_alone(place.node, None if kind == NODE_LOST else reason)
        self._vacate(place, AGAIN if place.state == "placed" else 0.0)

    def _give_up(self, place: WorkerSlot) -> None:
        """A worker that has hung."""
        if place.state == "building":
            self._nodes.leave_alone(place.node, f"no worker stood within {place.limit:.0f} s")
        elif place.job is not None:
            reason = f"not done within {place.limit:.0f} s"
            self._tell(place, "timed out", reason)
            self._outcomes.append(Outcome(place.job, reason=reason, retryable=True))
        self._vacate(place)

    def _tell(self, place: WorkerSlot, kind: str, reason: str) -> None:
        recipe = f" (recipe {place.job.recipe.digest[:12]})" if place.job else ""
        self._events.append(Event(kind, f"node {self._nodes.name(place.node)}: {reason}{recipe}"))

    def _timeout(self, derived: float | None) -> float | None:
        return derived if self._config.timeout == "auto" else self._config.timeout

    def _items(self, job: Job) -> int:
        """How many items a job is about."""
        if job.items is None:
            return self._sizes[job.split]
        return sum(map(len, job.items.values()))


def _methods(job: Job) -> set[str]:
    return {merge.method for merge in job.recipe.merges}
