"""Make a campaign file's relative paths absolute: they are taken from the file's own folder."""

from __future__ import annotations

import re
from pathlib import Path

from evomerge.common.data_files import read_text
from evomerge.common.errors import InputError
from evomerge.config.campaign import CampaignConfig
from evomerge.config.fitness import AnyTask, TaskConfig
from evomerge.config.models import TokenizerConfig
from evomerge.config.search import BestTrials, GradientStart, Start, StudyTrials

_NAME = re.compile(r"""^(?:task|group):[ \t]*["']?([^\s"'#\[{]+)""", re.MULTILINE)


def absolute(config: CampaignConfig, folder: Path) -> CampaignConfig:
    """Resolve the file's relative paths against its folder; hub ids stay as they are."""
    fitness, models = config.fitness, config.models
    include = fitness.include_path
    return config.model_copy(
        update={
            "models": models.model_copy(
                update={
                    "base": resolve_spec(models.base, folder),
                    "experts": {k: resolve_spec(v, folder) for k, v in models.experts.items()},
                    "tokenizer": models.tokenizer and _with_template(models.tokenizer, folder),
                }
            ),
            "fitness": fitness.model_copy(
                update={
                    "include_path": include and str((folder / include).resolve()),
                    "tasks": [
                        absolute_task(task, folder, folder / include if include else None)
                        for task in fitness.tasks
                    ],
                }
            ),
            "initial": [absolute_start(start, folder) for start in config.initial],
            "stages": [
                stage.model_copy(
                    update={"initial": [absolute_start(s, folder) for s in stage.initial]}
                )
                for stage in config.stages
            ],
            "study": config.study.model_copy(
                update={"storage": resolve_storage(config.study.storage, folder)}
            ),
        }
    )


def _with_template(tokenizer: TokenizerConfig, folder: Path) -> TokenizerConfig:
    template = template_at(tokenizer.chat_template, folder)
    return tokenizer.model_copy(update={"chat_template": template})


def template_at(said: str | None, folder: Path) -> str | None:
    """Return a chat template's text in place of its file's path, which begins at `folder`.

    Raises:
        InputError: there is no such file.
    """
    if said is None or not is_template_file(said):
        return said
    return read_text(folder / Path(said).expanduser())


def is_template_file(said: str) -> bool:
    """Tell whether a chat template is given by its file's path."""
    return "{" not in said and said.endswith((".jinja", ".j2", ".txt"))


def absolute_task(task: AnyTask, folder: Path, include: Path | None) -> AnyTask:
    """Resolve an entry's paths against the campaign file's folder.

    Those are a callable's documents, and its module where the folder has a file of its name; a task
    of lm-eval's may be named by its file, too, instead of which it then has the name in the file.

    Args:
        include: the folder of `fitness.include_path`.

    Raises:
        InputError: a task's file is not there, names no task, or is not in that folder.
    """
    if isinstance(task, TaskConfig):
        by_file = task.task.endswith((".yaml", ".yml"))
        return task.model_copy(update={"task": _name_in(task, folder, include)} if by_file else {})
    path = folder / (
        task.module if task.module.endswith(".py") else f"{task.module.replace('.', '/')}.py"
    )
    own = path.is_file() or task.module.endswith(".py")
    return task.model_copy(
        update={
            "callable": f"{path.resolve()}:{task.function}" if own else task.callable,
            "documents": str((folder / task.documents).resolve()),
        }
    )


def _name_in(task: TaskConfig, folder: Path, include: Path | None) -> str:
    """The name of the task, or group, whose file stands in `task`."""
    places = [folder / task.task, *([include / task.task] if include else [])]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise InputError(f"fitness.tasks: {task.task}: no such file in {folder}")
    found = _NAME.search(path.read_text("utf-8", "replace"))
    if found is None:
        raise InputError(f"fitness.tasks: {path} names no task; write task: NAME into it")
    if include is None or not path.resolve().is_relative_to(include.resolve()):
        raise InputError(
            f"fitness.tasks: {task.task} lies outside of fitness.include_path; set "
            f"fitness.include_path: {Path(task.task).parent} and name the task, task: {found[1]}"
        )
    return found[1]


def absolute_start(start: Start, folder: Path) -> Start:
    """Resolve files and folders against the campaign file's folder; names stay names."""
    if isinstance(start, BestTrials):
        return start.model_copy(update={"run": str((folder / start.run).resolve())})
    if isinstance(start, StudyTrials):
        return start.model_copy(update={"study": resolve_storage(start.study, folder)})
    if isinstance(start, GradientStart):
        return start
    is_file = start.endswith((".json", ".yaml", ".yml"))
    return str((folder / start).resolve()) if is_file else start


def resolve_storage(storage: str, folder: Path) -> str:
    """Resolve a SQLite file against the campaign file's folder; other URLs stay as they are."""
    scheme = "sqlite:///"
    if not storage.startswith(scheme) or ":memory:" in storage:
        return storage
    return scheme + str((folder / storage.removeprefix(scheme)).resolve())


def resolve_spec(spec: str, folder: Path) -> str:
    """Make a folder that exists, or anything that cannot be a hub id, an absolute path.

    Raises:
        InputError: no path at all: too long, in an unknown user's home, links in a circle.
    """
    looks_local = spec.startswith((".", "/", "~")) or spec.count("/") != 1
    try:
        path = (folder / Path(spec).expanduser()).resolve()
        return str(path) if path.exists() or looks_local else spec
    except (OSError, RuntimeError) as error:
        raise InputError(f"{spec[:80]}: cannot be a model's path ({str(error)[:80]})") from None
