"""The campaign file as strict models: an unknown key is an error that names the nearest valid one.

Everything here is about the *form* of the file. Whether a method, a gene, a task or a model exists
is said by the room that owns it (`search.space`, `fitness.tasks`, `models`).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from evomerge.errors import InputError
from evomerge.reading import quoted, read_text, yaml_data
from evomerge.sections import (
    CallableConfig,
    ConstraintConfig,
    EngineConfig,
    NotifyConfig,
    ObjectiveConfig,
    PlugConfig,
    Scalar,
    SpaceConfig,
    Strict,
    TrackerConfig,
    WorkersConfig,
)

SPLITS = ("search", "select", "test")
"""The three disjoint sets of documents, in the order in which they are opened."""

FloatType = Literal["float32", "float16", "bfloat16"]


class ModelsConfig(Strict):
    """The base model and its experts: folders, or hub ids with an optional `@revision`.

    The experts that `align` names have their MLP units and attention heads brought into the base's
    order before they are merged (Git Re-Basin), for experts that were permuted or that share little
    training with the base. `allow_locked` lets experts pass that look locked against merging.
    """

    base: str
    experts: dict[str, str] = Field(min_length=1)
    align: list[str] = Field(default_factory=list)
    allow_locked: bool = False
    allow_pickle: bool = False
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _aligned_are_experts(self) -> ModelsConfig:
        for name in self.align:
            if name not in self.experts:
                raise ValueError(
                    f"align: no expert {name!r}; the experts are {', '.join(self.experts)}"
                )
        return self

    @field_validator("experts")
    @classmethod
    def _names_are_usable(cls, experts: dict[str, str]) -> dict[str, str]:
        for name in experts:
            if name == "base":
                raise ValueError("an expert may not be called 'base', the base model's own name")
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"expert name {name!r} may hold letters, digits, '-' and '_' only; "
                    "it becomes part of parameter names"
                )
        return experts


class DtypeConfig(Strict):
    """`weights`: what candidates are rounded to. `compute`: what they are scored in."""

    weights: Literal["checkpoint"] | FloatType = "checkpoint"
    compute: Literal["auto"] | FloatType = "auto"


class TaskConfig(Strict):
    """One lm-eval task (or group, or tag) and how it counts; fields mean what lm-eval's mean.

    `metric` may name a filter as lm-eval prints it: `exact_match,strict-match`. A task that
    generates also has `response_tokens`, the length of an answer; fewer is better.

    `measures` are further metrics of the same answers, which cost no second forward pass. Each is
    known elsewhere (to `pareto`, constraints, map_elites) as `task.metric`, without a filter, and
    does not count in the task's score.
    """

    task: str
    metric: str = "acc"
    measures: list[str] = Field(default_factory=list)
    weight: float = Field(default=1.0, gt=0)
    num_fewshot: int | None = Field(default=None, ge=0)
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None
    """As in lm_eval's command: on with a chat template, off without, unless said here."""
    gen_kwargs: dict[str, Any] = Field(default_factory=dict)

    @property
    def multiturn(self) -> bool:
        """Whether few-shot examples are turns of a conversation."""
        if self.fewshot_as_multiturn is None:
            return bool(self.apply_chat_template)
        return self.fewshot_as_multiturn

    @field_validator("measures")
    @classmethod
    def _measures_are_named_once(cls, measures: list[str]) -> list[str]:
        names = [measure.partition(",")[0] for measure in measures]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} listed twice; give each metric once")
        return measures

    @model_validator(mode="after")
    def _multiturn_needs_a_template(self) -> TaskConfig:
        if self.multiturn and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn needs apply_chat_template: true")
        return self


def _kind_of_task(task: Any) -> str:
    own = "callable" in task if isinstance(task, Mapping) else isinstance(task, CallableConfig)
    return "kind:callable" if own else "kind:lm_eval"


AnyTask = Annotated[
    Annotated[TaskConfig, Tag("kind:lm_eval")] | Annotated[CallableConfig, Tag("kind:callable")],
    Discriminator(_kind_of_task),
]


class RaceConfig(Strict):
    """Who is stopped on a rung: whom ⌈keep · n⌉ of the n before it beat, each with `confidence`."""

    keep: float = Field(default=0.1, gt=0, lt=1)
    confidence: float = Field(default=0.6, ge=0.5, lt=1)


class FitnessConfig(Strict):
    """What "good" means: tasks, the objective over them, and how documents are split."""

    tasks: list[AnyTask] = Field(min_length=1)
    include_path: str | None = None
    allow_test_sets: bool = False
    """Whether the search may see documents of public test sets, which others report scores on."""
    engine: EngineConfig = EngineConfig()
    objective: ObjectiveConfig = ObjectiveConfig(kind="mean")
    constraints: list[ConstraintConfig] = Field(default_factory=list)
    splits: dict[str, float | int] = Field(
        default_factory=lambda: {"search": 0.5, "select": 0.2, "test": 0.3}
    )
    fewshot_seed: int = 1234
    batch_size: int = Field(default=64, ge=1)
    """Rows generated at once, and of lm-eval's own batches where an engine leaves work to it."""
    select_top: int = Field(default=10, ge=1)
    rungs: list[Annotated[int, Field(ge=1)] | Literal["all"]] = Field(default=["all"])
    """Numbers of items over all tasks, then `all`: who does badly on few is not asked the rest."""
    race: RaceConfig = RaceConfig()
    estimator: Literal["mean", "mp_irt", "gmp_irt"] = "gmp_irt"
    """How the score of a candidate that was stopped on a rung is estimated."""

    @property
    def lm_eval_tasks(self) -> list[TaskConfig]:
        """The entries that are lm-eval's tasks."""
        return [task for task in self.tasks if isinstance(task, TaskConfig)]

    @field_validator("rungs")
    @classmethod
    def _rungs_rise_to_all(cls, rungs: list[int | str]) -> list[int | str]:
        counts = [rung for rung in rungs if isinstance(rung, int)]
        if rungs != [*sorted(set(counts)), "all"]:
            raise ValueError("write rising numbers of items, then all: [32, 128, all]")
        return rungs

    @field_validator("tasks")
    @classmethod
    def _tasks_are_named_once(cls, tasks: list[AnyTask]) -> list[AnyTask]:
        names = [task.task for task in tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} listed twice; give each task once, with a weight")
        return tasks

    @field_validator("splits")
    @classmethod
    def _splits_add_up(cls, splits: dict[str, float | int]) -> dict[str, float | int]:
        if set(splits) != set(SPLITS):
            raise ValueError(f"name exactly {', '.join(SPLITS)}; found {', '.join(splits)}")
        values = list(splits.values())
        if any(value <= 0 for value in values):
            empty = next(name for name, value in splits.items() if value <= 0)
            raise ValueError(f"{empty} would be empty; every split needs documents")
        counts = all(isinstance(value, int) for value in values)
        if not counts and abs(sum(values) - 1) > 1e-9:
            raise ValueError(
                f"fractions add up to {sum(values):g}, not 1; or give whole numbers for counts"
            )
        return splits


class OptimizerConfig(PlugConfig):
    """`kind` names the optimizer; the other keys are its options (`evomerge list optimizers`).

    `screen`: of so many proposals the one is evaluated that a surrogate of the results prefers; 1
    turns it off.
    """

    kind: str = "cma"
    screen: int = Field(default=1, ge=1, le=1000, exclude_if=lambda among: among == 1)


class BudgetConfig(Strict):
    """`trials`: the study's total; `items`: that of the search items they are asked for, whatever
    the trials if only it is given. `hours`: this run's wall time.
    """

    trials: int = Field(default=200, ge=1)
    items: int | None = Field(default=None, ge=1)
    hours: float | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _items_alone_are_enough(cls, data: Any) -> Any:
        """A trial is asked for one item at least."""
        if isinstance(data, dict) and data.get("items") and "trials" not in data:
            return {**data, "trials": data["items"]}
        return data


class StudyConfig(Strict):
    """`sqlite` keeps the study in the run's folder; anything else is an Optuna storage URL.

    A database server that goes away is waited for, `wait_minutes` each time.
    """

    storage: str = "sqlite"
    name: str | None = None
    wait_minutes: float = Field(default=60.0, ge=0)


class BestTrials(Strict):
    """The best `trials` by search of another run's folder, their genes taken over by name."""

    run: str
    trials: int = Field(default=1, ge=1)


class StudyTrials(Strict):
    """The best `trials` of any Optuna study, its params taken over by name.

    `study`: its storage's URL; `name` may be left out where the storage has one study. What is best
    the study's own direction says. Params that are no genes here are passed over, numbers out of
    bounds go to the nearest.
    """

    study: str
    name: str | None = None
    trials: int = Field(default=1, ge=1)


def _kind_of_start(start: Any) -> str:
    if isinstance(start, Mapping):
        return "study" if "study" in start else "run"
    if isinstance(start, StudyTrials):
        return "study"
    return "run" if isinstance(start, BestTrials) else "name"


Start = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[BestTrials, Tag("run")]
    | Annotated[StudyTrials, Tag("study")],
    Discriminator(_kind_of_start),
]


class StageConfig(Strict):
    """One of several searches, each with the winners of those before it among its experts.

    What is not given is the campaign's own; tasks, splits, models and seed always are.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Of the stage, and of its winner as a model of the later stages."""
    space: SpaceConfig
    optimizer: OptimizerConfig | None = None
    initial: list[Start] = Field(default_factory=list)
    trials: int | None = Field(default=None, ge=1)


class CampaignConfig(Strict):
    """The whole campaign file."""

    name: str = Field(pattern=r"^[\w.-]+$")
    models: ModelsConfig
    space: SpaceConfig
    stages: list[StageConfig] = Field(default_factory=list)
    """Searches to run one after the other, in the place of `space`."""
    fitness: FitnessConfig
    dtype: DtypeConfig = DtypeConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    initial: list[Start] = Field(default_factory=list)
    """What to try first: `uniform`, a model's name, a recipe file, a mergekit file, trials of
    another run (`{run: FOLDER}`) or of any Optuna study (`{study: URL, name: NAME}`).
    """
    budget: BudgetConfig = BudgetConfig()
    study: StudyConfig = StudyConfig()
    workers: WorkersConfig = WorkersConfig()
    trackers: list[TrackerConfig] = Field(default_factory=list)
    notify: list[NotifyConfig] = Field(default_factory=list)
    chunk_mib: int = Field(default=16, ge=1)
    """Scratch memory of one element-wise merge, in MiB: bounds the fp32 copies held at a time."""
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _stages_have_spaces(cls, data: Any) -> Any:
        """Of a campaign with stages, `space` is the first one's."""
        stages = data.get("stages") if isinstance(data, dict) else None
        if not (isinstance(stages, list) and stages and isinstance(stages[0], dict)):
            return data
        first = stages[0].get("space")
        if first is None:
            return data
        if data.get("space", first) != first:
            raise ValueError("give space or stages, not both; every stage has a space of its own")
        if data.get("initial"):
            raise ValueError("initial: a campaign with stages gives it in a stage")
        return {**data, "space": first}

    @model_validator(mode="after")
    def _stages_are_models(self) -> CampaignConfig:
        taken = ["base", "merged", *self.models.experts]
        for stage in self.stages:
            if stage.name in taken:
                raise ValueError(
                    f"stages: {stage.name!r} is taken; a stage's winner is a model of the later "
                    "stages, under a name of its own"
                )
            taken.append(stage.name)
        return self


def load_campaign(path: Path, overrides: Sequence[str] = ()) -> CampaignConfig:
    """Read a campaign file, apply `key.path=value` overrides, and check its form.

    Relative paths in the file come back absolute, taken from the file's folder.

    Raises:
        InputError: the file is missing, is not YAML, or breaks the schema; names file and key.
    """
    data = yaml_data(read_text(path), str(path))
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a mapping with keys name, models, space, fitness")
    for override in overrides:
        _override(data, override)
    return _absolute(parse_campaign(data, str(path)), path.parent.resolve())


def parse_campaign(data: Mapping[str, Any], where: str) -> CampaignConfig:
    """Validate plain data as a campaign; `where` names its origin in messages.

    Raises:
        InputError: one line per problem, each with its key and, for typos, the nearest valid key.
    """
    try:
        return CampaignConfig.model_validate(data)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise InputError("\n".join(f"{where}: {line}" for line in dict.fromkeys(lines))) from None


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_digest(value: Any) -> str:
    """The first 16 bytes of SHA-256 over `canonical_json(value)`, as 32 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:32]


def _override(data: dict[str, Any], override: str) -> None:
    """Apply one `key.path=value` in place; the value is read as YAML."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"--set {override}: write it as key.path=value")
    value = yaml_data(text, f"--set {override}")
    *parents, last = key.split(".")
    section: Any = data
    for parent in parents:
        section = _section(section, parent)
    if not isinstance(section, dict):
        raise InputError(f"--set {override}: {'.'.join(parents)} is not a section")
    section[last] = value


def _section(section: Any, key: str) -> Any:
    """What stands under a key; of a list under a position, or of named sections under a name."""
    if isinstance(section, dict):
        return section.setdefault(key, {})
    if isinstance(section, list):
        named = {entry.get("name"): entry for entry in section if isinstance(entry, dict)}
        if key.isdecimal() and int(key) < len(section):
            return section[int(key)]
        return named.get(key)
    return None


def _absolute(config: CampaignConfig, folder: Path) -> CampaignConfig:
    """Resolve the file's relative paths against its folder; hub ids stay as they are."""
    fitness, models = config.fitness, config.models
    include = fitness.include_path
    return config.model_copy(
        update={
            "models": models.model_copy(
                update={
                    "base": resolve_spec(models.base, folder),
                    "experts": {k: resolve_spec(v, folder) for k, v in models.experts.items()},
                }
            ),
            "fitness": fitness.model_copy(
                update={
                    "include_path": include and str((folder / include).resolve()),
                    "tasks": [_absolute_task(task, folder) for task in fitness.tasks],
                }
            ),
            "initial": [_absolute_start(start, folder) for start in config.initial],
            "stages": [
                stage.model_copy(
                    update={"initial": [_absolute_start(s, folder) for s in stage.initial]}
                )
                for stage in config.stages
            ],
            "study": config.study.model_copy(
                update={"storage": _resolve_storage(config.study.storage, folder)}
            ),
        }
    )


def _absolute_task(task: AnyTask, folder: Path) -> AnyTask:
    """A callable's module is a file of the folder, if there is one of its name."""
    if isinstance(task, TaskConfig):
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


def _absolute_start(start: Start, folder: Path) -> Start:
    """Files and folders are taken from the campaign file's folder; names stay names."""
    if isinstance(start, BestTrials):
        return start.model_copy(update={"run": str((folder / start.run).resolve())})
    if isinstance(start, StudyTrials):
        return start.model_copy(update={"study": _resolve_storage(start.study, folder)})
    is_file = start.endswith((".json", ".yaml", ".yml"))
    return str((folder / start).resolve()) if is_file else start


def _resolve_storage(storage: str, folder: Path) -> str:
    """A SQLite file is taken from the campaign file's folder, as every relative path is."""
    scheme = "sqlite:///"
    if not storage.startswith(scheme) or ":memory:" in storage:
        return storage
    return scheme + str((folder / storage.removeprefix(scheme)).resolve())


def resolve_spec(spec: str, folder: Path) -> str:
    """A folder that exists, or anything that cannot be a hub id, becomes an absolute path.

    Raises:
        InputError: no path at all: too long, in an unknown user's home, links in a circle.
    """
    looks_local = spec.startswith((".", "/", "~")) or spec.count("/") != 1
    try:
        path = (folder / Path(spec).expanduser()).resolve()
        return str(path) if path.exists() or looks_local else spec
    except (OSError, RuntimeError) as error:
        raise InputError(f"{spec[:80]}: cannot be a model's path ({str(error)[:80]})") from None


def _explain(problem: Mapping[str, Any]) -> str:
    """One pydantic problem as `key.path: what is wrong, and the way out`."""
    unsaid = ("list[", "lax", "kind:")
    location = [str(part) for part in problem["loc"] if not str(part).startswith(unsaid)]
    where = ".".join(location) or "campaign"
    if problem["type"] == "extra_forbidden":
        valid = _keys_at(CampaignConfig, location[:-1])
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(valid))}"
        return f"{where}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: required, but not given"
    if problem["type"] in ("model_type", "dict_type"):
        return (
            f"{where}: expected a section with keys of its own (found {quoted(problem['input'])})"
        )
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (found {quoted(given)})" if isinstance(given, Scalar | None) else ""
    return f"{where}: {message[0].lower()}{message[1:]}{shown}"


def _keys_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The keys valid at a place in the file, found by walking the schema."""
    models = [model]
    for part in location:
        field = next((m.model_fields[part] for m in models if part in m.model_fields), None)
        if field is None:
            continue  # a list index, or a key of a free mapping
        models = _models_in(field.annotation) or models
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
