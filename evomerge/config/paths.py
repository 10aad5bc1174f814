"""Make a campaign file's relative paths absolute: they are taken from the file's own folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from evomerge.common.data_files import read_text
from evomerge.common.errors import InputError
from evomerge.config.agreement import AgreementTaskConfig
from evomerge.config.calibration import CalibrationConfig, CalibrationTexts
from evomerge.config.campaign import CampaignConfig
from evomerge.config.compose import ComposeTaskConfig
from evomerge.config.fitness import AnyTask, TaskConfig
from evomerge.config.models import TokenizerConfig
from evomerge.config.search import (
    BestTrials,
    GradientStart,
    PointStart,
    PriorStart,
    StageConfig,
    Start,
    StudyTrials,
)


class _Untagged(yaml.SafeLoader):
    """Reads a task's file for its name: `!function` and other tags stand for nothing."""


_Untagged.add_multi_constructor("!", lambda *_: None)


def absolute(config: CampaignConfig, folder: Path) -> CampaignConfig:
    """Resolve the file's relative paths against its folder; hub ids stay as they are."""
    fitness, models = config.fitness, config.models
    audited = fitness.audit.tasks if fitness.audit else []
    include = _include_folder(fitness.include_path, [*fitness.tasks, *audited], folder)
    audit = fitness.audit and fitness.audit.model_copy(
        update={"tasks": [absolute_task(task, folder, include) for task in audited]}
    )
    specs = {"base": models.base, **models.experts}
    places = adapters_alone({name: resolve_spec(spec, folder) for name, spec in specs.items()})
    return config.model_copy(
        update={
            "models": models.model_copy(
                update={
                    "base": places.pop("base"),
                    "experts": places,
                    "statistics": _statistics(config, folder),
                    "tokenizer": models.tokenizer and _with_template(models.tokenizer, folder),
                }
            ),
            "fitness": fitness.model_copy(
                update={
                    "include_path": include and str(include),
                    "tasks": [absolute_task(task, folder, include) for task in fitness.tasks],
                    "audit": audit,
                }
            ),
            "calibration": config.calibration
            and _absolute_texts(config.calibration, folder, include),
            "stages": [
                stage.model_copy(update=_absolute_starts(stage, folder)) for stage in config.stages
            ],
            **_absolute_starts(config, folder),
            "study": config.study.model_copy(
                update={"storage": resolve_storage(config.study.storage, folder)}
            ),
        }
    )


def _statistics(config: CampaignConfig, folder: Path) -> dict[str, str]:
    """Return the models' calibration files: as said, or those that lie in `calibration.folder`.

    A file that is said need not be there yet.
    """
    found = {}
    for name, spec in config.models.statistics.items():
        file = (folder / spec).resolve() if spec.endswith(".safetensors") else None
        found[name] = resolve_spec(spec, folder) if file is None else str(file)
    if config.calibration is None:
        return found
    place = (folder / config.calibration.folder).resolve()
    files = {name: place / f"{name}.safetensors" for name in ("base", *config.models.experts)}
    there = {name: str(path) for name, path in files.items() if path.is_file()}
    return {**there, **found}


def _absolute_texts(
    calibration: CalibrationConfig, folder: Path, include: Path | None
) -> CalibrationConfig:
    """Resolve files of texts, and tasks that are named by their files."""

    def there(texts: CalibrationConfig | CalibrationTexts) -> dict[str, str | None]:
        documents, task = texts.documents, texts.task
        if task is not None and _is_file(task):
            task = _name_in("calibration.task", task, folder, include)
        return {"documents": documents and str((folder / documents).resolve()), "task": task}

    own = {
        name: texts.model_copy(update=there(texts))
        for name, texts in calibration.per_expert.items()
    }
    place = str((folder / calibration.folder).resolve())
    return calibration.model_copy(update={**there(calibration), "per_expert": own, "folder": place})


def _absolute_starts(section: CampaignConfig | StageConfig, folder: Path) -> dict[str, list[Start]]:
    """Return what changes of a section's `initial`: nothing where it was not given."""
    if "initial" not in section.model_fields_set:
        return {}
    return {"initial": [absolute_start(start, folder) for start in section.initial]}


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


def _include_folder(said: str | None, tasks: Iterable[AnyTask], folder: Path) -> Path | None:
    """Return the folder of tasks: as said, or that of the first task that is named by its file."""
    if said is not None:
        return (folder / said).resolve()
    files = (folder / t.task for t in tasks if isinstance(t, TaskConfig) and _is_file(t.task))
    return next((path.resolve().parent for path in files if path.is_file()), None)


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def absolute_task(task: AnyTask, folder: Path, include: Path | None) -> AnyTask:
    """Resolve an entry's paths against the campaign file's folder.

    Those are an agreement's prompts, a callable's documents, and its module where the folder has a
    file of its name; a task of lm-eval's may be named by its file, too, instead of which it then
    has the name in the file.

    Args:
        include: the folder of `fitness.include_path`.

    Raises:
        InputError: a task's file is not there, names no task, or is not in that folder.
    """
    if isinstance(task, TaskConfig):
        named = (
            {"task": _name_in("fitness.tasks", task.task, folder, include)}
            if _is_file(task.task)
            else {}
        )
        return task.model_copy(update=named)
    if isinstance(task, AgreementTaskConfig):
        prompts = str((folder / task.agreement.prompts).resolve())
        update = {"agreement": task.agreement.model_copy(update={"prompts": prompts})}
        return task.model_copy(update=update)
    if isinstance(task, ComposeTaskConfig):
        return task
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


def _name_in(key: str, task: str, folder: Path, include: Path | None) -> str:
    """Return the name of the task, or group, whose file stands in `task` under `key`."""
    places = [folder / task, *([include / task] if include else [])]
    path = next((place.resolve() for place in places if place.is_file()), None)
    if path is None:
        raise InputError(f"{key}: {task}: no such file in {folder}")
    found = _task_name(path, {path})
    if found is None:
        raise InputError(f"{key}: {path} names no task; write task: NAME into it")
    if include is None or not path.is_relative_to(include):
        raise InputError(
            f"{key}: {task} lies outside of fitness.include_path ({include}); set "
            f"fitness.include_path to a folder that holds all task files, {path.parent} or one "
            f"above it, or name the task, task: {found}"
        )
    return found


def _task_name(path: Path, seen: set[Path]) -> str | None:
    """Return the name in a task's or a group's file, or else in those that it includes."""
    try:
        data = yaml.load(read_text(path), Loader=_Untagged)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"fitness.tasks: {path} cannot be read: {reason}") from None
    if not isinstance(data, dict):
        return None
    for key in ("task", "group"):
        if isinstance(data.get(key), str):
            return str(data[key])
    includes = data.get("include") or []
    for name in reversed([includes] if isinstance(includes, str) else includes):
        inside = (path.parent / str(name)).resolve()
        if inside.is_file() and inside not in seen:
            seen.add(inside)
            if (found := _task_name(inside, seen)) is not None:
                return found
    return None


def absolute_start(start: Start, folder: Path) -> Start:
    """Resolve files and folders against the campaign file's folder; names stay names."""
    if isinstance(start, BestTrials):
        return start.model_copy(update={"run": str((folder / start.run).resolve())})
    if isinstance(start, StudyTrials):
        return start.model_copy(update={"study": resolve_storage(start.study, folder)})
    if isinstance(start, GradientStart | PointStart | PriorStart):
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

    Of `MODEL+ADAPTER` both are.

    Raises:
        InputError: no path at all: too long, in an unknown user's home, links in a circle.
    """
    looks_local = spec.startswith((".", "/", "~")) or spec.count("/") != 1
    try:
        path = (folder / Path(spec).expanduser()).resolve()
        if "+" in spec and not path.exists():
            return "+".join(resolve_spec(part, folder) for part in spec.split("+", 1))
        return str(path) if path.exists() or looks_local else spec
    except (OSError, RuntimeError) as error:
        raise InputError(f"{spec[:80]}: cannot be a model's path ({str(error)[:80]})") from None


def model_and_adapter(spec: str) -> tuple[str, str | None]:
    """Split mergekit's `MODEL+ADAPTER`."""
    model, _, adapter = spec.partition("+")
    return model, adapter or None


def adapter_elsewhere(place: str, spec: str, base: str) -> InputError:
    """Refuse an adapter on another model than the base; `place` names it in the file."""
    return InputError(
        f"{place}: {spec}: an adapter on {model_and_adapter(spec)[0]}; adapters are merged onto "
        f"the base, {base}; merge it into its own model first (peft's merge_and_unload) and name "
        "the result"
    )


def adapters_alone(specs: Mapping[str, str]) -> dict[str, str]:
    """Return the models with the adapter alone in place of mergekit's `BASE+ADAPTER`.

    An adapter is merged onto the base, wherever it is named.

    Args:
        specs: source name → resolved spec, the base's under "base".

    Raises:
        InputError: the base is one, or an adapter is on another model.
    """
    found = dict(specs)
    for name, spec in specs.items():
        model, plus, adapter = spec.partition("+")
        if not plus or Path(spec).exists():
            continue
        if name == "base":
            raise InputError(
                f"models.base: {spec}: an adapter is no base; merge it into its model first "
                "(peft's merge_and_unload) and name the result"
            )
        if model != specs["base"]:
            raise adapter_elsewhere(f"models.experts.{name}", spec, specs["base"])
        found[name] = adapter
    return found
