"""What runs inside a Ray actor: one worker, built when its node is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray

from evomerge import __version__
from evomerge.common.errors import EvomergeError, InputError
from evomerge.workers.build import Job, Outcome, attempt
from evomerge.workers.ray.file_copies import FileSet, unpacked
from evomerge.workers.worker import PACKAGES, Worker, WorkerSpec


@dataclass(frozen=True)
class Refusal:
    """Why a worker cannot stand on its node; `given`: what the user gave is at fault."""

    reason: str
    given: bool


class Actor:
    """The worker inside its actor; what goes wrong comes back as an answer, not as an exception."""

    def where(self) -> str:
        """The node's id."""
        return ray.get_runtime_context().get_node_id()

    def build(
        self,
        spec: WorkerSpec,
        versions: Mapping[str, str],
        parcels: Mapping[str, FileSet],
        porter: Any,
    ) -> Refusal | None:
        """Build the worker on this node; None once it stands.

        Args:
            versions: the driver's, by package.
            parcels: what is to be copied to this node first, from `porter`.
        """
        try:
            _check_versions(versions)
            if parcels:
                spec = unpacked(spec, parcels, _reader(porter))
            self._worker = Worker(spec, elsewhere=True)
        except EvomergeError as error:
            return Refusal(str(error), isinstance(error, InputError))
        # A full disk, a broken driver of a device: nothing that concerns other nodes.
        except Exception as error:
            return Refusal(f"{type(error).__name__}: {error}".partition("\n")[0], given=False)
        return None

    def measure(self, job: Job) -> Outcome:
        """As `attempt`."""
        return attempt(job, self._worker.measure)


class FileServer:
    """Reads the driver's files for nodes that do not see them."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """`folders`: by parcel; nothing outside them is read."""
        self._folders = folders

    def read(self, parcel: str, file: str, start: int, size: int) -> bytes:
        """A part of a file."""
        with open(self._folders[parcel] / file, "rb") as opened:
            opened.seek(start)
            return opened.read(size)


def own_versions() -> dict[str, str]:
    """Those of this machine; of torch without what it was built for."""
    others = {package: version(package).partition("+")[0] for package in PACKAGES}
    return {"evomerge": __version__, **others}


def _check_versions(theirs: Mapping[str, str]) -> None:
    for package, ours in own_versions().items():
        if ours != theirs[package]:
            raise InputError(
                f"{package} is {ours} here and {theirs[package]} where the campaign runs; scores "
                "of different versions must not be mixed: install the same on all nodes"
            )


def _reader(porter: Any) -> Any:
    def read(parcel: str, file: str, start: int, size: int) -> bytes:
        return ray.get(porter.read.remote(parcel, file, start, size))

    return read
