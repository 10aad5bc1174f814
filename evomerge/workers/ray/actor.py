"""The Ray actor: one worker, built when its node is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import ray

from evomerge.common.errors import EvomergeError, InputError
from evomerge.common.version import __version__
from evomerge.workers.job import Job, Outcome, attempt, perform
from evomerge.workers.ray.file_copies import FileSet, with_copies
from evomerge.workers.worker import PACKAGES, Worker, WorkerSpec


@dataclass(frozen=True)
class Refusal:
    """The reason why a worker cannot stand on its node.

    Attributes:
        given: what the user gave is at fault, not the node.
    """

    reason: str
    given: bool


class Actor:
    """Builds a worker and measures; errors come back as answers, not as exceptions."""

    def where(self) -> str:
        """Return the node's id."""
        return ray.get_runtime_context().get_node_id()

    def build(
        self,
        spec: WorkerSpec,
        versions: Mapping[str, str],
        file_sets: Mapping[str, FileSet],
        file_server: Any,
    ) -> Refusal | None:
        """Build the worker on this node; None once it stands.

        Args:
            versions: package → the driver's version.
            file_sets: the files to copy to this node first, from `file_server`.
        """
        try:
            _check_versions(versions)
            if file_sets:
                spec = with_copies(spec, file_sets, partial(_read, file_server))
            self._worker = Worker(spec, elsewhere=True)
        except EvomergeError as error:
            return Refusal(str(error), isinstance(error, InputError))
        # A full disk, a broken driver of a device: nothing that concerns other nodes.
        except Exception as error:
            return Refusal(f"{type(error).__name__}: {error}".partition("\n")[0], given=False)
        return None

    def measure(self, job: Job) -> Outcome:
        """Measure a job, see `attempt`."""
        return attempt(job, partial(perform, self._worker))


def own_versions() -> dict[str, str]:
    """Return package → its version on this machine; torch's without what it was built for."""
    others = {package: version(package).partition("+")[0] for package in PACKAGES}
    return {"evomerge": __version__, **others}


def _check_versions(theirs: Mapping[str, str]) -> None:
    for package, ours in own_versions().items():
        if ours != theirs[package]:
            raise InputError(
                f"{package} is {ours} here and {theirs[package]} where the campaign runs; scores "
                "of different versions must not be mixed: install the same on all nodes"
            )


def _read(file_server: Any, key: str, file: str, start: int, size: int) -> bytes:
    return ray.get(file_server.read.remote(key, file, start, size))
