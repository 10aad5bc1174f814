"""Find and load lm-eval's tasks: local ones first, built-in ones only when they are needed.

lm-eval's own index of built-in tasks takes 10 s to build (14,700 names), so a name is looked up in
`include_path`, then in the built-in folder that begins its name, and only then everywhere.
"""

from __future__ import annotations

import difflib
import functools
import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.utils
from jinja2 import TemplateError
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml
from typing_extensions import override

from evomerge.common.errors import InputError
from evomerge.config import AnyTask, ComposeTaskConfig, FitnessConfig, TaskConfig
from evomerge.fitness.tasks.lm_eval_quirks import tasks_opened
from evomerge.fitness.tasks.test_sets import (
    BUILT_IN,
    FILE_FORMATS,
    is_built_in,
    refuse,
    test_set_named,
    test_set_of,
)

_SPLIT_KEYS = ("test_split", "validation_split", "training_split", "fewshot_split")
_MISSING_METRIC = re.compile(r"Module '([\w-]+)' doesn't exist on the Hugging Face Hub")
"""The end of what `evaluate` says of a metric whose script it neither has nor can fetch."""
OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
_USUAL = {"multiple_choice": "acc", "loglikelihood": "acc", "generate_until": "exact_match"}
"""lm-eval's metrics of tasks that name none."""


@dataclass(frozen=True)
class LoadedTasks:
    """The tasks that one entry of `fitness.tasks` stands for.

    Attributes:
        tasks: lm-eval `Task` objects by name; several where the entry names a group or a tag.
        group: the lm-eval `Group` that the entry names, if it names one.
        test_sets: task → the public test set that its documents are, if they are one.
    """

    tasks: dict[str, Any]
    group: Any | None
    test_sets: dict[str, str | None]


class LocalTaskFactory(TaskFactory):
    """Builds tasks whose relative data paths start at the folder of the file they stand in."""

    @override
    def _load_full_config(
        self, entry: Entry, overrides: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        if entry.yaml_path is None or is_built_in(entry):
            return super()._load_full_config(entry, overrides)
        config = read_task_file(Path(entry.yaml_path), (entry.cfg or {}).get("dataset_path"))
        return super()._load_full_config(Entry(entry.name, entry.kind, None, config), overrides)


def read_task_file(path: Path, dataset_path: str | None) -> dict[str, Any]:
    """Read a task or group file, with its includes merged in and its data paths made absolute.

    Args:
        path: the YAML file; `!function` values are imported from its folder, as lm-eval does.
        dataset_path: the task's builder, which may stand in another file of the include chain.
    """
    config = load_yaml(path, recursive=False)
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    for include in [includes] if isinstance(includes, str) else includes:
        included = read_task_file(path.resolve().parent / include, dataset_path)
        included.pop("task_list", None)
        merged |= included
    return merged | _with_absolute_data(config, path.resolve().parent, dataset_path)


def _with_absolute_data(
    config: Mapping[str, Any], folder: Path, dataset_path: str | None
) -> dict[str, Any]:
    """Take a config's local data paths from `folder`; names of the hub and URLs stay."""
    config = dict(config)
    if isinstance(members := config.get("task"), list):
        config["task"] = [
            _with_absolute_data(member, folder, member.get("dataset_path"))
            if isinstance(member, dict)
            else member
            for member in members
        ]
    named = config.get("dataset_path")
    if isinstance(named, str) and named not in FILE_FORMATS and (folder / named).exists():
        config["dataset_path"] = str(folder / named)
    kwargs = config.get("dataset_kwargs")
    if dataset_path in FILE_FORMATS and isinstance(kwargs, dict):
        # `datasets` takes data_files from data_dir where both are given.
        key = "data_dir" if "data_dir" in kwargs else "data_files"
        config["dataset_kwargs"] = kwargs | {key: _absolute(kwargs.get(key), folder)}
    return config


def _absolute(value: Any, folder: Path) -> Any:
    """Take every path in a data_files value (text, list or mapping of them) from `folder`."""
    if isinstance(value, str):
        return value if "://" in value else str(folder / value)
    if isinstance(value, dict):
        return {key: _absolute(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    return value


def open_manager(config: FitnessConfig) -> TaskManager:
    """Open a task manager that knows every task the campaign names, and few others.

    Raises:
        InputError: `include_path` is no folder, or a name is neither there nor built in.
    """
    # 1. Local tasks.
    folder = config.include_path
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"fitness.include_path: {folder} is not a folder")
    named = [
        (position, name) for position, task in enumerate(config.tasks) for name in _names_of(task)
    ]
    names = [name for _, name in named]
    manager = TaskManager(include_path=folder, include_defaults=False)
    manager._factory = LocalTaskFactory()
    index = manager.task_index
    if folder is not None:
        _add_yml(index, Path(folder))
        for position, name in named:
            _refuse_unreadable(position, name, index, Path(folder))
    # 2. Of names that are missing: the built-in folder that begins the name, then all built-in.
    for name in _unresolved(names, index):
        _add(index, _folder_index(name))
    if _unresolved(names, index):
        _add(index, _built_in_index())
    for position, name in named:
        if name not in index:
            raise InputError(_unknown(position, name, index, folder))
    return manager


def _names_of(task: AnyTask) -> list[str]:
    """List the lm-eval tasks that an entry names."""
    if isinstance(task, ComposeTaskConfig):
        return task.compose
    return [task.task] if isinstance(task, TaskConfig) else []


def load_tasks(
    manager: TaskManager, position: int, spec: TaskConfig, config: FitnessConfig
) -> LoadedTasks:
    """Load one entry of `fitness.tasks` with its data.

    Args:
        manager: knows the task.
        position: of the entry.
        spec: the entry.
        config: the section; it says whether public test sets and code are let through.

    Raises:
        InputError: the task or its data cannot be loaded, is of a kind evomerge does not score, is
            a public test set without leave, or runs the model's code without leave.
    """
    where, index = f"fitness.tasks[{position}].task: {spec.task!r}", manager.task_index
    if not config.allow_test_sets:
        refuse([(spec.task, test_set_named(index[spec.task]))], where)
    if config.run_unsafe_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # asked for by lm-eval's code tasks as they load
    elif _runs_code(index[spec.task]):
        raise InputError(_refused_code(where, spec.task))
    opened: list[Any] = []
    try:
        with tasks_opened(opened):
            loaded = manager.load([spec.task])
    # Loading runs the task author's own code and reads their data: anything can come out of it.
    except (ConnectionError, FileNotFoundError) as error:
        if missing := _MISSING_METRIC.search(str(error)):
            raise InputError(f"{where}: {_fetch_metric(missing[1])}") from error
        advice = (
            "Correct data_files in the task's file; relative paths start at its folder"
            if str(error).startswith("Unable to find '/")
            else "Nothing is fetched while offline: load the data set once on line, or give local "
            "files as data_files"
        )
        raise InputError(f"{where}: its data cannot be read: {error}. {advice}") from error
    except Exception as error:
        reason = _why_not_loaded(opened[-1], error) if opened else None
        if not opened and isinstance(error, StopIteration):  # what `datasets` makes of it
            reason = "a file of its data is empty; give at least one document a split"
        if reason is None:
            reason = f"{type(error).__name__}: {error}"
            if error.__cause__ is not None:  # what is wrong with a file `datasets` says only there
                reason += f" ({error.__cause__})"
        entry = index[spec.task]
        file = "" if is_built_in(entry) or entry.yaml_path is None else f" ({entry.yaml_path})"
        raise InputError(f"{where}{file} cannot be loaded: {reason}") from error
    for name, task in loaded["tasks"].items():
        _refuse_what_cannot_be_scored(where, name, task, config.run_unsafe_code)
    test_sets = {name: test_set_of(name, task, index) for name, task in loaded["tasks"].items()}
    if not config.allow_test_sets:
        refuse(test_sets.items(), where)
    return LoadedTasks(loaded["tasks"], loaded["groups"].get(spec.task), test_sets)


def first_metric(name: str, index: Mapping[str, Entry]) -> str:
    """Name the first metric of a task, or of a group's first task, as its file has it.

    Under the first of its filters where it has several, as `exact_match,strict-match`.

    Raises:
        InputError: the file does not say; names the way out.
    """
    seen = set[str]()
    while name not in seen and name in index and index[name].kind == Kind.GROUP:
        seen.add(name)
        name = next(iter(_members(index[name].cfg or {}, index)), name)
    entry = index.get(name)
    config: Mapping[str, Any] = {}
    if entry is not None and entry.kind == Kind.TASK and entry.yaml_path is not None:
        config = load_yaml(entry.yaml_path, resolve_func=False)
    listed = config.get("metric_list") or []
    metric = listed[0].get("metric") if listed else _USUAL.get(str(config.get("output_type")))
    if not isinstance(metric, str):
        raise InputError(f"--task {name}: its file names no metric; write {name}:METRIC")
    filters = config.get("filter_list") or []
    return f"{metric},{filters[0]['name']}" if len(filters) > 1 else metric


def dataset_of(task: Any) -> str | None:
    """Say the hub's name for a task's data set; None for local data."""
    path = task.DATASET_PATH
    local = path is None or path in FILE_FORMATS or Path(path).exists()
    return None if local else str(path)


def missing_split(task: Any, error: Exception) -> str | None:
    """Say which split a task's file names and its data lacks, if that is what the error means."""
    splits, name = getattr(task, "dataset", None), str(error.args[0]) if error.args else ""
    keys = [key for key in _SPLIT_KEYS if getattr(task.config, key, None) == name]
    if not (isinstance(error, KeyError) and isinstance(splits, Mapping) and keys):
        return None
    there = ", ".join(map(repr, splits))
    text = f"{keys[0]} is {name!r}, but the data has {there} only; name one that is there"
    if task.DATASET_PATH in FILE_FORMATS:
        text += f", or give the file as data_files: {{{name}: …}}"
    return text


def _why_not_loaded(task: Any, error: Exception) -> str | None:
    """Say what is wrong with a task whose data was read: a split, a template, its first document.

    None where that does not show.
    """
    # 1. Splits that are not there, or empty.
    if reason := missing_split(task, error):
        return reason
    splits = getattr(task, "dataset", None)
    if isinstance(splits, Mapping):
        for name in [getattr(task.config, key, None) for key in _SPLIT_KEYS]:
            if name in splits and not len(splits[name]):
                return f"its split {name!r} has no documents"
    # 2. Templates.
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice", "description"):
        template = getattr(task.config, key, None)
        try:
            if isinstance(template, str):
                lm_eval.utils.env.from_string(template)
        except TemplateError as wrong:
            return f"its {key} is not a template: {wrong}"
    # 3. The first document, on which lm-eval tries the templates.
    with suppress(Exception):
        document = task.task_docs[0]
        choices, answer = task.doc_to_choice(document), task.doc_to_target(document)
        if "" in choices:
            return f"an empty choice in its first document: {choices}"
        if isinstance(answer, int) and answer not in range(len(choices)):
            return (
                f"the answer of its first document, {answer}, is none of its {len(choices)} "
                "choices, which are counted from 0"
            )
    return None


def _runs_code(entry: Entry) -> bool:
    """Say whether a task's file says that it runs the model's code, before it is loaded."""
    if entry.kind != Kind.TASK or entry.yaml_path is None:
        return False
    with suppress(Exception):  # a file that cannot be read is told of when it is loaded
        return bool(load_yaml(entry.yaml_path, resolve_func=False).get("unsafe_code"))
    return False


def _refused_code(where: str, name: str) -> str:
    return (
        f"{where}: {name} runs code that the model writes, on this machine, with your rights. Set "
        "fitness.run_unsafe_code: true if you mean it, best inside a container without anything "
        "of value, or choose another task"
    )


def _fetch_metric(name: str) -> str:
    """Say how to get a metric of the `evaluate` package that a task's functions load."""
    return (
        f"it needs the metric {name!r} of the package `evaluate`, whose script is not here, and "
        'nothing is fetched while offline. Load it once on line, with python -c "import evaluate; '
        f"evaluate.load('{name}')\", which keeps it in modules/evaluate_modules of Hugging Face's "
        f"cache; or put its folder {name}, with {name}.py, into the folder that the command is "
        "run in"
    )


def _refuse_what_cannot_be_scored(where: str, name: str, task: Any, run_unsafe_code: bool) -> None:
    if task.OUTPUT_TYPE not in OUTPUT_TYPES:
        raise InputError(
            f"{where}: {name} has output_type {task.OUTPUT_TYPE}, which has no score per item "
            f"here; supported: {', '.join(OUTPUT_TYPES)}"
        )
    if getattr(task, "UNSAFE_CODE", False) and not run_unsafe_code:
        raise InputError(_refused_code(where, name))
    if getattr(task, "MULTIMODAL", False):
        raise InputError(f"{where}: {name} needs images or audio; only text tasks are scored")


def _unresolved(names: Iterable[str], index: Mapping[str, Entry]) -> set[str]:
    """Find the names, and the members of groups among them, that the index does not hold."""
    missing: set[str] = set()
    waiting, seen = list(names), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in index:
            missing.add(name)
        elif index[name].kind == Kind.GROUP:
            waiting.extend(_members(index[name].cfg or {}, index))
    return missing


def _members(group: Mapping[str, Any], index: Mapping[str, Entry]) -> Iterator[str]:
    """Yield the names that a group's config refers to; members defined there need no entry."""
    for member in group.get("task") or []:
        if isinstance(member, str):
            yield member
        elif "group" in member and member["group"] not in index and "task" in member:
            yield from _members(member, index)
        elif "dataset_path" not in member and "custom_dataset" not in member:
            yield member.get("group") or member["task"]


def _add(index: dict[str, Entry], more: Mapping[str, Entry]) -> None:
    """Add entries to the index; those that it has already win, as include_path does in lm-eval."""
    for name, entry in more.items():
        index.setdefault(name, entry)


def _add_yml(index: dict[str, Entry], folder: Path) -> None:
    """Add tasks and groups of files that end in .yml, which lm-eval passes over."""
    found: dict[str, Entry] = {}
    for path in sorted(folder.glob("**/*.yml")):
        # As lm-eval does with .yaml: a file that is no task is left out; `_unknown` names it.
        with suppress(Exception):
            TaskIndex.process_cfg(load_yaml(path, resolve_func=False), path, found)
    _add(index, found)


def _folder_index(name: str) -> dict[str, Entry]:
    """Index the built-in folder with the longest name that begins `name`."""
    folders = [path for path in BUILT_IN.iterdir() if path.is_dir() and name.startswith(path.name)]
    if not folders:
        return {}
    folder = max(folders, key=lambda path: len(path.name))
    index = TaskManager(include_path=folder, include_defaults=False).task_index
    # A tag gathers tasks of other folders too: only the full index has all of them.
    return {key: entry for key, entry in index.items() if entry.kind != Kind.TAG}


@functools.cache
def _built_in_index() -> Mapping[str, Entry]:
    """Index every built-in name; 10 s, so once in a process."""
    return TaskManager(include_defaults=True).task_index


def _refuse_unreadable(position: int, name: str, index: Mapping[str, Entry], folder: Path) -> None:
    """Refuse a task whose own file, by its name, cannot be read: it is looked for nowhere else.

    Raises:
        InputError: names the file.
    """
    for path in sorted(folder.glob(f"**/{glob.escape(name)}.y*ml")) if name not in index else ():
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # whatever YAML, an include or a tag makes of it
            raise InputError(
                f"fitness.tasks[{position}].task: {name!r}: {path} cannot be read: {error}"
            ) from None


def _unknown(position: int, name: str, index: Mapping[str, Entry], folder: str | None) -> str:
    """Say that there is no such task, with the nearest names and unreadable local files."""
    near = difflib.get_close_matches(name, index, n=3, cutoff=0.6)
    text = f"fitness.tasks[{position}].task: no task {name!r} "
    text += f"in {folder} or among lm-eval's own" if folder else "among lm-eval's own"
    if near:
        text += f"; did you mean {', '.join(near)}?"
    for path in sorted(Path(folder).glob("**/*.y*ml")) if folder else ():
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:
            text += f"\n{path} cannot be read: {error}"
    return text
