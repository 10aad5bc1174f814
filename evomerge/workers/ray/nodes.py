"""The nodes of a Ray cluster: what they have room for, which come and go, which are left alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from evomerge.config import WorkersConfig
from evomerge.workers.build import Event

EVERY = 2.0
"""Seconds between two looks at the cluster."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 600.0
"""Seconds for which a node that is at fault is left alone: doubled with every further fault."""


@dataclass
class _Fault:
    count: int = 0
    until: float = 0.0


class Nodes:
    """The nodes that are alive, by Ray's ids.

    Attributes:
        threads: CPUs that a worker takes.
    """

    def __init__(self, workers: WorkersConfig, threads: int | None) -> None:
        """`threads` of a worker; None: what the nodes' CPUs give."""
        self._gpus = workers.gpus_per_worker
        self._faults: dict[str, _Fault] = {}
        self._names: dict[str, str] = {}
        self._events: list[Event] = []
        self._alive: dict[str, Mapping[str, float]] = {}
        self._looked = 0.0
        self.look()
        self._events.clear()  # those that are there at the beginning have not come
        self.threads = threads or threads_on([*self._alive.values()], workers)

    def look(self) -> None:
        """See who has come and who has gone, if the last look is some time ago."""
        now = time.monotonic()
        if now - self._looked < EVERY:
            return
        self._looked = now
        there = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for node in there.keys() - self._alive.keys():
            self._names[node] = f"{there[node]['NodeManagerHostname']}/{node[:6]}"
            self._events.append(Event("nodes joined", f"node {self._names[node]} joined"))
        for node in self._alive.keys() - there.keys():
            self._events.append(Event("nodes lost", f"node {self._names[node]} is lost"))
            self._faults.pop(node, None)
        self._alive = {node: found["Resources"] for node, found in there.items()}

    def name(self, node: str) -> str:
        """For people: the host's name, and the beginning of Ray's id."""
        return self._names.get(node, node[:6])

    def is_there(self, node: str) -> bool:
        """Whether a node was alive at the last look."""
        return node in self._alive

    @property
    def room(self) -> int:
        """How many workers they hold, if nobody else uses them."""
        return sum(holds(there, self.threads, self._gpus) for there in self._alive.values())

    @property
    def usable(self) -> bool:
        """Whether one that has room for a worker is not left alone."""
        alone = self.left_alone
        return any(
            holds(there, self.threads, self._gpus)
            for node, there in self._alive.items()
            if node not in alone
        )

    @property
    def left_alone(self) -> frozenset[str]:
        """The nodes to which no worker is to go now."""
        now = time.monotonic()
        return frozenset(node for node, fault in self._faults.items() if fault.until > now)

    def leave_alone(self, node: str, why: str | None) -> None:
        """Send no worker to a node for some time, longer with every fault in a row.

        `why` is told; None for a node that seems to be gone, which is told when it is.
        """
        fault = self._faults.setdefault(node, _Fault())
        if fault.until > time.monotonic():
            return
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**fault.count)
        fault.count, fault.until = fault.count + 1, time.monotonic() + pause
        if why is not None:
            text = f"node {self.name(node)} is left alone for {pause:.0f} s: {why}"
            self._events.append(Event("nodes left alone", text))

    def proved(self, node: str) -> None:
        """A node has done what was asked: earlier faults are forgotten."""
        self._faults.pop(node, None)

    def drain_events(self) -> list[Event]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events


def holds(resources: Mapping[str, float], threads: int, gpus: float) -> int:
    """How many workers a node holds."""
    room = resources.get("CPU", 0) / threads
    return int(min(room, resources.get("GPU", 0) / gpus) if gpus else room)


def threads_on(nodes: Sequence[Mapping[str, Any]], workers: WorkersConfig) -> int:
    """CPUs of a worker where the campaign file does not say: as many as still give all a place.

    With GPUs, a worker's share of its node's CPUs is what its GPUs are of the node's.
    """
    most = int(max((node.get("CPU", 0) for node in nodes), default=0))
    if workers.cpus_per_worker:
        return workers.cpus_per_worker
    fair = sum(holds(node, 1, workers.gpus_per_worker) for node in nodes)
    wanted = fair if workers.count == "auto" else min(workers.count, fair)
    for threads in range(most, 1, -1):
        if sum(holds(node, threads, workers.gpus_per_worker) for node in nodes) >= wanted:
            return threads
    return 1
