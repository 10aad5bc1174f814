"""The nodes of a Ray cluster: their room, their coming and going, their quarantine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from evomerge.config import WorkersConfig
from evomerge.workers.job import Event

EVERY = 2.0
"""Seconds between two looks at the cluster."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 600.0
"""Seconds of a node's first and longest quarantine: doubled with every fault in a row."""


@dataclass
class _Fault:
    count: int = 0
    until: float = 0.0


class Nodes:
    """Watches the nodes that are alive, by Ray's ids.

    Attributes:
        threads: number of CPUs that a worker takes.
    """

    def __init__(self, workers: WorkersConfig, threads: int | None) -> None:
        """Look at the cluster; `threads` of a worker are None where the nodes' CPUs decide."""
        self._gpus = workers.gpus_per_worker
        self._faults: dict[str, _Fault] = {}
        self._names: dict[str, str] = {}
        self._events: list[Event] = []
        self._alive: dict[str, Mapping[str, float]] = {}
        self._looked = 0.0
        self.look()
        self._events.clear()  # nodes that are there at the beginning have not joined
        self.threads = threads or threads_on([*self._alive.values()], workers)

    def look(self) -> None:
        """Find the nodes that joined or were lost, at most every `EVERY` seconds."""
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
        """Return the host's name and the beginning of Ray's id."""
        return self._names.get(node, node[:6])

    def is_there(self, node: str) -> bool:
        """Say whether a node was alive at the last look."""
        return node in self._alive

    @property
    def room(self) -> int:
        """How many workers the nodes hold, if nobody else uses them."""
        return sum(holds(there, self.threads, self._gpus) for there in self._alive.values())

    @property
    def usable(self) -> bool:
        """Whether a node with room for a worker is not quarantined."""
        quarantined = self.quarantined
        return any(
            holds(there, self.threads, self._gpus)
            for node, there in self._alive.items()
            if node not in quarantined
        )

    @property
    def quarantined(self) -> frozenset[str]:
        """The nodes to which no worker may go now."""
        now = time.monotonic()
        return frozenset(node for node, fault in self._faults.items() if fault.until > now)

    def quarantine(self, node: str, why: str | None) -> None:
        """Send no worker to a node for some time, longer with every fault in a row.

        Args:
            why: the reason, for the log; None for a node that seems to be gone, which has an event
                of its own once it is.
        """
        fault = self._faults.setdefault(node, _Fault())
        if fault.until > time.monotonic():
            return
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**fault.count)
        fault.count, fault.until = fault.count + 1, time.monotonic() + pause
        if why is not None:
            text = f"node {self.name(node)} is quarantined for {pause:.0f} s: {why}"
            self._events.append(Event("nodes left alone", text))

    def clear(self, node: str) -> None:
        """Forget a node's earlier faults, since it has done a job."""
        self._faults.pop(node, None)

    def drain_events(self) -> list[Event]:
        """Return what happened since the last call, and forget it."""
        events, self._events = self._events, []
        return events


def holds(resources: Mapping[str, float], threads: int, gpus: float) -> int:
    """Return how many workers a node with these resources holds."""
    room = resources.get("CPU", 0) / threads
    return int(min(room, resources.get("GPU", 0) / gpus) if gpus else room)


def threads_on(nodes: Sequence[Mapping[str, Any]], workers: WorkersConfig) -> int:
    """Return the CPUs of a worker: by default the most that still leave room for all workers.

    With GPUs, a worker's share of its node's CPUs is that of its GPUs in the node's.
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
