"""Copies models and tasks to nodes that do not see the driver's files.

The first worker of a node copies them into `workers.copy_to`, under a name that changes with the
files; the node's other workers map them from there.
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
from evomerge.config import AgreementTaskConfig, AnyTask, CallableConfig, CampaignConfig
from evomerge.recipe import BASE
from evomerge.workers.worker import WorkerSpec

PART = 64 << 20
"""Number of bytes that are sent at a time."""
TASKS = "tasks"
"""The key of the file set of `fitness.include_path`. A model's is `model NAME`, a callable's are
`module NAME` and `documents NAME`, an agreement's `documents NAME`.
"""

Read = Callable[[str, str, int, int], bytes]
"""(key of the file set, file, start, size in bytes) → that part of the driver's file."""


@dataclass(frozen=True)
class FileSet:
    """A folder of the driver's.

    Attributes:
        files: path within the folder → size in bytes.
        name: of the copy; changes with the files.
    """

    folder: Path
    files: Mapping[str, int]
    name: str


class FileServer:
    """Reads the driver's files for nodes that do not see them."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """Serve these folders, by the keys of their file sets; nothing outside them is read."""
        self._folders = folders

    def read(self, key: str, file: str, start: int, size: int) -> bytes:
        """Return `size` bytes of a file, from `start` on."""
        with open(self._folders[key] / file, "rb") as opened:
            opened.seek(start)
            return opened.read(size)


def file_sets_of(config: CampaignConfig) -> dict[str, FileSet]:
    """Return the folders of a campaign's models, of its tasks if it has one, and callables' files.

    Raises:
        InputError: a model cannot be found.
    """
    from evomerge.models.calibrations import find_calibration
    from evomerge.models.checkpoint import find_folder  # with torch, which an actor loads later

    models = config.models
    flags = {"allow_pickle": models.allow_pickle, "trust_remote_code": models.trust_remote_code}
    specs = {BASE: models.base, **models.experts}
    folders = {name: find_folder(name, spec, **flags) for name, spec in specs.items()}
    found = {f"model {name}": _file_set(folder, "*") for name, folder in folders.items()}
    for name, spec in models.statistics.items():
        file = find_calibration(spec)
        found[f"statistics {name}"] = _file_set(file.parent, escape(file.name))
    if config.fitness.include_path is not None:
        found[TASKS] = _file_set(Path(config.fitness.include_path), "**/*")
    for own in _callables(config):
        module, documents = Path(own.module), Path(own.documents)
        found[f"documents {own.task}"] = _file_set(documents.parent, escape(documents.name))
        if module.suffix == ".py":  # else it is installed, on every node
            found[f"module {own.task}"] = _file_set(module.parent, "*.py")
    for task in config.fitness.agreements:
        prompts = Path(task.agreement.prompts)
        found[f"documents {task.task}"] = _file_set(prompts.parent, escape(prompts.name))
    return found


def with_copies(spec: WorkerSpec, file_sets: Mapping[str, FileSet], read: Read) -> WorkerSpec:
    """Return the worker's spec with all files on this machine, copying what is not there yet.

    Raises:
        OSError: a file cannot be written.
    """
    config = spec.config
    assert config.workers.copy_to is not None
    to = Path(config.workers.copy_to)
    places = {key: str(_copy(key, file_set, to, read)) for key, file_set in file_sets.items()}
    experts = {name: places[f"model {name}"] for name in config.models.experts}
    calibrations = {name: places[f"statistics {name}"] for name in config.models.statistics}
    models = {"base": places[f"model {BASE}"], "experts": experts, "statistics": calibrations}
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
    """Return an entry with files of its own with the paths of its copies; others as they are."""
    if isinstance(task, AgreementTaskConfig):
        prompts = Path(places[f"documents {task.task}"]) / Path(task.agreement.prompts).name
        about = task.agreement.model_copy(update={"prompts": str(prompts)})
        return task.model_copy(update={"agreement": about})
    if not isinstance(task, CallableConfig):
        return task
    documents = Path(places[f"documents {task.task}"]) / Path(task.documents).name
    update = {"documents": str(documents)}
    if (folder := places.get(f"module {task.task}")) is not None:
        update["callable"] = f"{Path(folder) / Path(task.module).name}:{task.function}"
    return task.model_copy(update=update)


def _file_set(folder: Path, pattern: str) -> FileSet:
    files = {
        path.relative_to(folder).as_posix(): path.stat()
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }
    states = [[file, found.st_size, found.st_mtime_ns] for file, found in files.items()]
    name = f"{folder.name}-{content_digest([str(folder.resolve()), states])}"
    return FileSet(folder, {file: found.st_size for file, found in files.items()}, name)


def _copy(key: str, file_set: FileSet, to: Path, read: Read) -> Path:
    """Copy a file set into a folder of its own, unless a worker of this node has done so."""
    to.mkdir(parents=True, exist_ok=True)
    place, partial = to / file_set.name, to / f"{file_set.name}.partial"
    with FileLock(f"{place}.lock"):
        if place.is_dir():
            return place
        shutil.rmtree(partial, ignore_errors=True)  # of a worker that died over it
        if shutil.disk_usage(to).free < sum(file_set.files.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(to))
        partial.mkdir()
        for file, size in file_set.files.items():
            path = partial / file
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as opened:
                for start in range(0, size, PART):
                    opened.write(read(key, file, start, min(PART, size - start)))
        os.replace(partial, place)
    return place
