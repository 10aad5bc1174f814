"""Ray itself: started or joined, its file server, and the meaning of its errors."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
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

from evomerge.common.errors import EvomergeError, InputError, StoppedError
from evomerge.workers.ray.death_notice import MESSAGE
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


def check_own_ray() -> None:
    """Notice that the Ray which this process started has ended; no node would ever come back.

    Mostly Ray ends the driver before: see `death_notice`.

    Raises:
        StoppedError: names the process that ended, and where its logs are.
    """
    for name, process in _own_processes().items():
        if process.poll() is not None:
            said = MESSAGE.format(name=name, logs=_logs())
            raise StoppedError(said.removeprefix("error: ").rstrip("."))


def begin_death_notice() -> subprocess.Popen[bytes]:
    """Start the process that says why, should the Ray that was started here end this one."""
    script = Path(__file__).with_name("death_notice.py")
    processes = [f"{name}={process.pid}" for name, process in _own_processes().items()]
    command = [sys.executable, str(script), _logs(), *processes]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def end_death_notice(notice: subprocess.Popen[bytes]) -> None:
    """End the notice's process without a word: the driver ends in order."""
    with suppress(OSError):
        notice.communicate(b"done")


def _own_processes() -> dict[str, subprocess.Popen[bytes]]:
    """Return the processes of Ray without which it is nothing, of the Ray that was started here."""
    node = ray._private.worker._global_node
    known = {} if node is None else node.all_processes
    return {name: known[name][0].process for name in ("raylet", "gcs_server") if known.get(name)}


def _logs() -> str:
    return str(ray._private.worker._global_node.get_logs_dir_path())


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
