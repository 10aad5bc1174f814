"""Ray itself: started or joined, its file server, and the meaning of its errors."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    OutOfDiskError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from evomerge.common.errors import EvomergeError, InputError
from evomerge.workers.ray.file_copies import FileServer, FileSet
from evomerge.workers.worker import WorkerSpec

PORT = 6379
"""The port of a cluster's head, where the address has none."""
NODE_LOST, DISK_FULL = "workers lost with their node", "disks full"
"""Kinds of events for which a node is quarantined."""


def join(spec: WorkerSpec) -> None:
    """Start Ray on this machine, or join the cluster that the campaign file names.

    Raises:
        InputError: it cannot be reached.
        EvomergeError: it cannot be started.
    """
    workers = spec.config.workers
    address = workers.address
    if address and address != "auto" and ":" not in address:
        address = f"{address}:{PORT}"
    cpus = {} if address or workers.count == "auto" else {"num_cpus": spec.threads * workers.count}
    try:
        if address and address != "auto" and "://" not in address:
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), 10).close()  # Ray tries for five minutes
        ray.init(
            address=address or "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **cpus,
        )
    # Bare exceptions among them, such as that a node took too long to start.
    except Exception as error:
        if address is None:
            raise EvomergeError(f"Ray cannot be started on this machine: {error}") from None
        raise InputError(
            f"workers.address: cannot reach Ray at {address!r}: {error}; "
            "run `ray start --address=HOST:PORT` on this machine first"
        ) from None
    # Ray prints its nodes' mishaps to standard output; the campaign reports them itself.
    ray._private.worker._worker_logs_enabled = False


def start_file_server(file_sets: Mapping[str, FileSet]) -> Any:
    """Start the `FileServer`, an actor on the driver's own node."""
    folders = {key: files.folder for key, files in file_sets.items()}
    here = ray.get_runtime_context().get_node_id()
    affinity = NodeAffinitySchedulingStrategy(here, soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": affinity, "max_restarts": -1}
    return ray.remote(FileServer).options(**options).remote(folders)


def death(error: RayError) -> tuple[str, str]:
    """Return the kind of an event, and the reason, for a worker that is gone."""
    if isinstance(error, OutOfMemoryError):
        return "workers out of memory", "its worker ran out of memory"
    if isinstance(error, OutOfDiskError):
        return DISK_FULL, "the disk of its node is full"
    if isinstance(error, ActorUnavailableError) or "node has died" in str(error):
        return NODE_LOST, "its node was lost"
    return "workers died", "its worker died"


def cause(error: RayTaskError) -> EvomergeError:
    """Return what went wrong inside the actor."""
    if isinstance(error.cause, EvomergeError):
        return error.cause
    return EvomergeError(f"a Ray worker failed: {error.cause!r}")


def last_line(error: RayError) -> str:
    """Return the line of an actor's failure that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):
        if "Error: " in line:
            return line.partition("Error: ")[2]
    return lines[-1] if lines else "no reason given"
