"""Models and tasks on nodes that do not see the driver's files: copied once, by the first worker.

What is copied lies in `workers.copy_to`, under a name that changes with the files; the others map
it from there.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path

from filelock import FileLock

from evomerge.common.digest import content_digest
from evomerge.config import AnyTask, CallableConfig, CampaignConfig
from evomerge.recipe import BASE
from evomerge.workers.worker import WorkerSpec

PART = 64 << 20
"""Bytes that are sent at a time."""
TASKS = "tasks"
"""The parcel of `fitness.include_path`. Models' are called `model NAME`; a callable's files are in
`module NAME` and `documents NAME`.
"""

Read = Callable[[str, str, int, int], bytes]
"""(parcel, file, start, size) → a part of a file of the driver's."""


@dataclass(frozen=True)
class FileSet:
    """A folder of the driver's: its files by their path within it, with their sizes in bytes."""

    folder: Path
    files: Mapping[str, int]
    name: str


def parcels_of(config: CampaignConfig) -> dict[str, FileSet]:
    """The folders of a campaign's models, that of its tasks, if it has one, and callables' files.

    Raises:
        InputError: a model cannot be found.
    """
    from evomerge.models.checkpoint import find_folder  # with torch, which an actor loads later

    models = config.models
    flags = {"allow_pickle": models.allow_pickle, "trust_remote_code": models.trust_remote_code}
    specs = {BASE: models.base, **models.experts}
    folders = {name: find_folder(name, spec, **flags) for name, spec in specs.items()}
    found = {f"model {name}": _parcel(folder, "*") for name, folder in folders.items()}
    if config.fitness.include_path is not None:
        found[TASKS] = _parcel(Path(config.fitness.include_path), "**/*")
    for own in _callables(config):
        module, documents = Path(own.module), Path(own.documents)
        found[f"documents {own.task}"] = _parcel(documents.parent, escape(documents.name))
        if module.suffix == ".py":  # else it is installed, on every node
            found[f"module {own.task}"] = _parcel(module.parent, "*.py")
    return found


def unpacked(spec: WorkerSpec, parcels: Mapping[str, FileSet], read: Read) -> WorkerSpec:
    """The worker's spec with everything on this machine, copied if it is not there yet.

    Raises:
        OSError: it cannot be written.
    """
    config = spec.config
    assert config.workers.copy_to is not None
    to = Path(config.workers.copy_to)
    places = {key: str(_unpack(key, parcel, to, read)) for key, parcel in parcels.items()}
    experts = {name: places[f"model {name}"] for name in config.models.experts}
    models = {"base": places[f"model {BASE}"], "experts": experts}
    update = {
        "models": config.models.model_copy(update=models),
        "fitness": config.fitness.model_copy(
            update={
                "include_path": places.get(TASKS),
                "tasks": [_moved(task, places) for task in config.fitness.tasks],
            }
        ),
    }
    return replace(spec, config=config.model_copy(update=update), statistics=to / "statistics")


def _callables(config: CampaignConfig) -> list[CallableConfig]:
    return [task for task in config.fitness.tasks if isinstance(task, CallableConfig)]


def _moved(task: AnyTask, places: Mapping[str, str]) -> AnyTask:
    """A callable's entry with the copies' paths."""
    if not isinstance(task, CallableConfig):
        return task
    documents = Path(places[f"documents {task.task}"]) / Path(task.documents).name
    update = {"documents": str(documents)}
    if (folder := places.get(f"module {task.task}")) is not None:
        update["callable"] = f"{Path(folder) / Path(task.module).name}:{task.function}"
    return task.model_copy(update=update)


def _parcel(folder: Path, pattern: str) -> FileSet:
    files = {
        path.relative_to(folder).as_posix(): path.stat()
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }
    states = [[file, found.st_size, found.st_mtime_ns] for file, found in files.items()]
    name = f"{folder.name}-{content_digest([str(folder.resolve()), states])}"
    return FileSet(folder, {file: found.st_size for file, found in files.items()}, name)


def _unpack(key: str, parcel: FileSet, to: Path, read: Read) -> Path:
    to.mkdir(parents=True, exist_ok=True)
    place, partial = to / parcel.name, to / f"{parcel.name}.partial"
    with FileLock(f"{place}.lock"):
        if place.is_dir():
            return place
        shutil.rmtree(partial, ignore_errors=True)  # of a worker that died over it
        if shutil.disk_usage(to).free < sum(parcel.files.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(to))
        partial.mkdir()
        for file, size in parcel.files.items():
            path = partial / file
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as opened:
                for start in range(0, size, PART):
                    opened.write(read(key, file, start, min(PART, size - start)))
        os.replace(partial, place)
    return place
