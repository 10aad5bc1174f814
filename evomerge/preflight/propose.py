"""Propose a campaign: genes, splits, rungs, budget and workers, each with its reason.

The rules are the how-to pages': 20 trials a gene, the finest granularity of at most 40 genes that
the hours are enough for, 100 to 300 search documents of each task. Hours are reckoned from the
models' shapes and this machine's speed, as `evomerge check` does without weights.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evomerge.common.errors import InputError, ModelNotFoundError
from evomerge.common.plugins import nearest
from evomerge.config import (
    Draft,
    ModelsConfig,
    SpaceConfig,
    campaign_name,
    parse_campaign,
    seen_from,
)
from evomerge.recipe import BASE

if TYPE_CHECKING:
    from evomerge.fitness.tasks.task_set import TaskItems
    from evomerge.models.layout import Layout

TRIALS_A_GENE = 20
"""The rule to begin with, of docs/how-to/how-many-trials.md."""
MOST_GENES = 40
"""Genes beyond which fewer gain more; see docs/how-to/how-many-trials.md."""
_BLOCKS = (2, 4, 8, 16)
"""Layers of a block, from fine to coarse."""
_ENOUGH = 100
"""Documents of a task, below which the file says that they are few."""
_SEARCH, _SELECT, _TEST = 300, 100, 1000
"""Most documents of each task in a split."""
_ALL_TASKS = 1200
"""Search documents of all tasks together, about."""
_MOST_TRIALS = 2000
"""Trials of a campaign made of another tool's file, whose genes are given."""
_LINKED = {".json", ".model", ".txt", ".jinja", ".py", ".tiktoken"}
"""Endings of the files of a model that are no weights."""


@dataclass(frozen=True)
class Choice:
    """One row of what was chosen: the key, its value, and why."""

    key: str
    value: str
    why: str


@dataclass(frozen=True)
class Asked:
    """What the user says of a campaign.

    Attributes:
        base: folder or hub id.
        experts: name → folder or hub id.
        tasks: (task or task file, metric or None for its first).
        goal: the objective.
        hours: wall time of the search.
        folder: where the campaign file will lie.
        include_path: a folder of task files.
        download: whether configs may be downloaded.
        measure: whether seconds are reckoned with this machine's speed.
        prompts: (expert, file of prompts) that merges should answer as the expert does.
    """

    base: str
    experts: Mapping[str, str]
    tasks: Sequence[tuple[str, str | None]]
    goal: Literal["mean", "weakest_link", "pareto"] = "mean"
    hours: float = 8.0
    folder: Path = Path()
    include_path: Path | None = None
    download: bool = False
    measure: bool = True
    prompts: Sequence[tuple[str, str]] = ()

    @property
    def models(self) -> ModelsConfig:
        """The `models` section."""
        return ModelsConfig(base=self.base, experts=dict(self.experts))

    @property
    def optimizer(self) -> dict[str, Any]:
        """The `optimizer` section for the goal."""
        return {"kind": "nsga2" if self.goal == "pareto" else "cma"}


@dataclass(frozen=True)
class Cost:
    """Hours that are reckoned.

    Attributes:
        trial: hours of one trial with all workers at work.
        before: hours of what is no trial: parents, default merges, finalists, the test.
        memory: bytes that a worker takes of its device.
    """

    trial: float
    before: float
    memory: int

    def trials(self, hours: float) -> int:
        """Count the trials that there is time for."""
        return max(0, int((hours - self.before) / self.trial)) if self.trial else 10**9


def propose(asked: Asked) -> tuple[Draft, list[Choice]]:
    """Propose a campaign for models and tasks.

    Returns:
        The draft, and what was chosen with the reasons.

    Raises:
        InputError: models, tasks or goal cannot be used; names them.
    """
    _rule_out_one_model_twice(asked)
    fitness, choices = propose_fitness(asked)
    choices = [_rule_out_one_goal(asked, fitness), *choices]
    with config_folders(asked.models, asked.download) as here:
        layout = layout_of_models(here)
        gpus = _free_gpus()
        cost = _cost(asked, here, fitness) if asked.measure and "splits" in fitness else None
    workers, why_workers = propose_workers(cost, gpus)
    count = workers.get("count", 1) if workers else 1
    weights, genes, why = propose_weights(layout, list(asked.experts), cost, asked.hours, count)
    trials, enough = _trials(genes, cost, asked.hours, count, asked.goal)
    data: dict[str, Any] = {
        "name": campaign_name("-".join(asked.experts))[:60],
        "models": {
            BASE: seen_from(asked.folder, asked.base),
            "experts": {n: seen_from(asked.folder, spec) for n, spec in asked.experts.items()},
        },
        "space": {"weights": weights},
        "fitness": fitness,
        "optimizer": asked.optimizer,
        "budget": {"trials": trials, "hours": _number(asked.hours)},
        **({"workers": workers} if workers else {}),
    }
    choices = [
        Choice("space.weights.granularity", _grain(weights), why),
        *choices,
        Choice("budget", f"{trials} trials, {asked.hours:g} hours", enough),
        Choice("workers", f"{count}" if workers else "1, on this machine", why_workers),
    ]
    comments = {choice.key: choice.why for choice in choices if choice.key != "workers" or workers}
    comments |= {
        "space.weights.method": "the one that gains most reliably; evomerge list methods",
        "space.weights.genes": "[low, high] is searched, a single value is fixed",
        "optimizer": "evomerge list optimizers",
    }
    title = "Made by evomerge init. Comments say why; evomerge explain KEY says what a key means."
    return Draft(title, data, comments), choices


def _rule_out_one_model_twice(asked: Asked) -> None:
    """Refuse a model that is named twice, under its own name or another."""
    named = {asked.base: "the base"}
    for name, spec in asked.experts.items():
        if spec in named:
            raise InputError(f"{spec}: is {named[spec]} already; name a model once")
        named[spec] = f"the expert {name}"


def _rule_out_one_goal(asked: Asked, fitness: Mapping[str, Any]) -> Choice:
    """Say why the goal; refuse a front of one task."""
    several = len(fitness["tasks"]) > 1
    if asked.goal == "pareto" and not several:
        raise InputError(
            "--goal pareto: a front needs two tasks or more; give a second --task or --prompts"
        )
    why = {
        "mean": "the weighted mean of the tasks" if several else "the score on the task",
        "weakest_link": "the task on which a merge is worst counts",
        "pareto": "the front: what one task gains and another loses",
    }
    return Choice("fitness.objective", asked.goal, why[asked.goal])


def propose_fitness(
    asked: Asked, given: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[Choice]]:
    """Propose the `fitness` section from the tasks' sizes.

    Args:
        given: parts of the section that are decided: the tasks as they shall stand in the file,
            include_path as seen from the current folder, splits.

    Returns:
        The section, its paths as seen from `asked.folder`; and the choices. Without the tasks' data
        at hand the splits stay the campaign's default.

    Raises:
        InputError: no such task or metric.
    """
    from evomerge.config import FitnessConfig
    from evomerge.fitness.tasks.lm_eval_loading import first_metric, open_manager
    from evomerge.fitness.tasks.test_sets import test_set_named

    section = dict(given or {})
    include, names = _include_path(asked, section)
    tasks = [dict(task) for task in section.get("tasks", [])]
    tasks += [{"task": name, "metric": metric} for name, metric in names]
    compared = _agreements(asked)
    if not tasks and not compared:
        raise InputError(
            "no task: give --task NAME[:metric], which says what is good, or --prompts EXPERT=FILE "
            "where there are no labels"
        )
    config = FitnessConfig.model_validate(
        {
            "tasks": [{**t, "metric": t["metric"] or "acc"} for t in tasks] + compared,
            "include_path": include,
            "allow_test_sets": True,
        }
    )
    index = open_manager(config).task_index
    for task in tasks:
        task["metric"] = task["metric"] or first_metric(task["task"], index)
    config = FitnessConfig.model_validate({**config.model_dump(), "tasks": [*tasks, *compared]})
    for entry in compared:
        about = entry["agreement"]
        about["prompts"] = seen_from(asked.folder, about["prompts"])
    found: dict[str, Any] = {**section, "tasks": [*tasks, *compared]}
    if include:
        found = {"include_path": seen_from(asked.folder, include), **found}
    choices: list[Choice] = []
    items, missing = _items(config)
    public = {one.task: one.test_set for one in items if one.test_set}
    public |= {
        task["task"]: named
        for task in tasks
        if task["task"] in index and (named := test_set_named(index[task["task"]]))
    }
    if public and "allow_test_sets" not in found:
        found["allow_test_sets"] = True
        name, data = next(iter(public.items()))
        why = f"{name} scores {data}, which others report: quote this campaign's test split alone"
        choices.append(Choice("fitness.allow_test_sets", "true", why))
    if asked.goal != "mean" and "objective" not in found:
        names_of = [task.task for task in config.tasks]
        of = {"kind": "pareto", "of": names_of}
        found["objective"] = of if asked.goal == "pareto" else asked.goal
    if items:
        splits, why = propose_splits(items, found.get("splits"))
        found["splits"] = splits
        choices.append(Choice("fitness.splits", _shown(splits), why))
        counted = {one.task: one for one in items if one.weight > 0}
        whole = sum(_count(splits["search"], len(_scored(one))) for one in counted.values())
        rungs, why = propose_rungs(whole, len(counted))
        if rungs and asked.goal != "pareto":
            found["rungs"] = rungs
            choices.append(Choice("fitness.rungs", _shown(rungs), why))
    elif "splits" not in found:
        why = f"shares of each task's documents, whose number is not known here ({missing})"
        choices.append(Choice("fitness.splits", ".5, .2, .3, the default", why))
    return found, choices


def _agreements(asked: Asked) -> list[dict[str, Any]]:
    """The entries of agreement with experts.

    Raises:
        InputError: no such expert or file; names both.
    """
    models = (BASE, *asked.experts)
    for expert, file in asked.prompts:
        if expert not in models:
            raise InputError(
                f"--prompts {expert}={file}: no model is called {expert!r}; write one of "
                f"{', '.join(models)}"
            )
        if not Path(file).expanduser().is_file():
            raise InputError(f"--prompts {expert}={file}: no such file")
    return [{"agreement": {"expert": name, "prompts": file}} for name, file in asked.prompts]


def _include_path(
    asked: Asked, section: Mapping[str, Any]
) -> tuple[str | None, list[tuple[str, str | None]]]:
    """Find the folder of task files, as seen from here, and the tasks' own names.

    Raises:
        InputError: a task's file is not there, names no task, or lies elsewhere than another.
    """
    from evomerge.config import TaskConfig
    from evomerge.config.paths import absolute_task

    given = asked.include_path or section.get("include_path")
    folder = Path(given).expanduser() if given else None
    names = []
    for name, metric in asked.tasks:
        if name.endswith((".yaml", ".yml")):
            folder = folder or Path(name).parent
            name = absolute_task(TaskConfig(task=name), Path.cwd(), folder.resolve()).task
        names.append((name, metric))
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder}: no such folder of tasks")
    return (str(folder) if folder else None), names


def _items(config: Any) -> tuple[tuple[TaskItems, ...], str]:
    """List the tasks' items; none, and why, where their data cannot be read here."""
    from evomerge.fitness.tasks.task_set import list_items

    try:
        return list_items(config), ""
    except InputError as error:
        if error.__cause__ is None:  # a metric that is not there, say, and not the data
            raise
        return (), "its data set is not on this machine"


def _scored(task: TaskItems) -> list[str]:
    return [item for item in task.ids if item not in task.excluded]


def _count(share: float | int, items: int) -> int:
    return share if isinstance(share, int) else int(share * items)


def propose_splits(
    tasks: Sequence[TaskItems], wished: Mapping[str, float | int] | None = None
) -> tuple[dict[str, float | int], str]:
    """Propose how many documents of each task search, select and test have.

    Args:
        tasks: with their items.
        wished: counts to keep where there are as many documents.

    Returns:
        Counts, or fractions where documents that tasks share make exact counts impossible; and why.
    """
    from evomerge.config import FitnessConfig
    from evomerge.judging.splits import deal

    counted = [task for task in tasks if task.weight > 0]
    least = min(len(_scored(task)) for task in counted)
    name = min(counted, key=lambda task: len(_scored(task))).task
    if wished and sum(wished.values()) <= least and all(n >= 1 for n in wished.values()):
        splits: dict[str, float | int] = dict(wished)
    else:
        search = min(_SEARCH, least // 2, max(20, _ALL_TASKS // len(counted)))
        select = min(_SELECT, least // 5)
        splits = {"search": search, "select": select}
        splits["test"] = min(_TEST, least - search - select)
    marks = {
        task.task: {item: of for item, of in zip(task.ids, task.marks, strict=True)
                    if item not in task.excluded}
        for task in counted
    }  # fmt: skip
    try:
        deal(marks, splits)
    except InputError:
        shares = FitnessConfig.model_fields["splits"].get_default(call_default_factory=True)
        return shares, "shares of the documents, since tasks share some, or have too few to count"
    why = f"documents of {name}, which has {least}"
    if len(counted) > 1:
        why = f"documents of each task; {name} has the fewest, {least}"
    few = f"; too few to be sure of a lead: see that there are {_ENOUGH} or more"
    return splits, why + few * (least < _ENOUGH)


def propose_rungs(search: int, tasks: int) -> tuple[list[int | str] | None, str]:
    """Propose rungs for a search split of so many items over so many tasks; None: too few."""
    if search < 200:
        return None, ""
    first = max(32, 4 * tasks, round(search / 10))
    second = round(search / 3)
    rungs: list[int | str] = [first, second, "all"] if second >= 2 * first else [first, "all"]
    return rungs, "a candidate that does badly on few documents is not asked the others"


def propose_weights(
    layout: Layout, experts: Sequence[str], cost: Cost | None, hours: float, workers: int = 1
) -> tuple[dict[str, Any], int, str]:
    """Propose the `space.weights` section: the finest granularity that there are trials for.

    Returns:
        The section, its number of genes, and why.
    """
    fit = cost.trials(hours * workers) if cost else TRIALS_A_GENE * MOST_GENES
    wide = [size for size in _BLOCKS if size < layout.layers]
    grains: list[dict[str, Any]] = [{"granularity": "layer"}]
    grains += [{"granularity": "block", "block": size} for size in wide]
    for grain in (*grains, {"granularity": "model"}):
        weights = {"method": "task_arithmetic", **grain, "genes": {"weight": [0, 1.5]}}
        genes = count_genes({"weights": weights}, layout, experts)
        if genes <= MOST_GENES and TRIALS_A_GENE * genes <= fit:
            break
    of = f"{genes} genes for {layout.layers} layers and {_count_of(len(experts), 'expert')}"
    if TRIALS_A_GENE * genes > fit:
        return weights, genes, f"{of}, the fewest; {hours:g} hours are short even for these"
    if grain["granularity"] == "layer":
        return weights, genes, f"{of}, {TRIALS_A_GENE} trials each"
    limit = f"over {MOST_GENES}"
    if fit < TRIALS_A_GENE * MOST_GENES:
        limit = f"too many for the {fit:,} trials that {hours:g} hours are enough for"
    return weights, genes, f"{of}, {TRIALS_A_GENE} trials each; finer ones would be {limit}"


def count_genes(space: Mapping[str, Any], layout: Layout, experts: Sequence[str]) -> int:
    """Count the genes of a `space` section over models of a layout.

    Raises:
        InputError: the section does not fit the layout or its method.
    """
    from evomerge.search.spaces.build import build_space

    section = SpaceConfig.model_validate(dict(space))
    return build_space(section, layout, dict.fromkeys([BASE, *experts], ""), 0).dimension


def _trials(
    genes: int, cost: Cost | None, hours: float, workers: int, goal: str
) -> tuple[int, str]:
    """Return the number of trials, and why."""
    wanted = max(100, TRIALS_A_GENE * genes, 200 if goal == "pareto" else 0)
    if cost is None:
        return wanted, f"{TRIALS_A_GENE} a gene; evomerge check says how many hours"
    fit = cost.trials(hours * workers)
    if fit < wanted:
        return max(10, fit), f"as many as {hours:g} hours are enough for, reckoned on this machine"
    took = cost.before + wanted * cost.trial / workers
    minutes = max(1, round(60 * took))
    shown = _count_of(minutes, "minute") if minutes < 90 else f"{took:.2g} hours"
    return wanted, f"{TRIALS_A_GENE} a gene, 100 at least: about {shown}, reckoned"


def propose_workers(cost: Cost | None, gpus: Sequence[int]) -> tuple[dict[str, Any] | None, str]:
    """Propose workers by the free memory of this machine's GPUs, in bytes.

    Returns:
        The section, None for one worker on this machine; and why.
    """
    if not gpus:
        return None, "no GPU here: one worker has all cores"
    each = 1
    if cost is not None:
        each = max(1, math.ceil(cost.memory / min(gpus)))
    if len(gpus) == 1:
        return None, "one GPU here"
    if each > len(gpus):
        return None, f"{len(gpus)} GPUs here, too small together for one model"
    count = len(gpus) // each
    shared = f"{each} for each worker" if each > 1 else "one for each worker"
    return (
        {"kind": "ray", "count": count, "gpus_per_worker": each},
        f"{len(gpus)} GPUs here, {shared}",
    )


def _free_gpus() -> tuple[int, ...]:
    from evomerge.preflight.machine import this_machine

    return this_machine().gpus


@contextmanager
def config_folders(models: ModelsConfig, download: bool) -> Iterator[ModelsConfig]:
    """Give the models folders that hold their configs and tokenizers, and no weights.

    Args:
        download: whether configs of hub ids that are not cached may be fetched.

    Raises:
        InputError: a model that is neither a folder here nor a hub id at hand; names it.
    """
    from evomerge.models.checkpoint import configs_of

    specs = {BASE: models.base, **models.experts}
    with tempfile.TemporaryDirectory(prefix="evomerge-init-") as scratch:
        found: dict[str, str] = {}
        for name, spec in specs.items():
            if Path(spec).is_file():  # a recipe, of which its base says all
                found[name] = found.get(BASE, spec)
                continue
            try:
                place = configs_of(name, spec, False, download=download)
            except InputError as error:
                if near := _folders_beside(spec):
                    raise type(error)(f"{spec}: no such folder; {nearest(spec, near)}") from None
                hint = "" if download else "; or add --download-configs (no weights are fetched)"
                raise type(error)(f"{error}{hint}") from None
            if place is None:
                near = _folders_beside(spec)
                way = f"; {nearest(spec, near)}" if near else ", and not a hub id (org/model)"
                raise ModelNotFoundError(f"{spec}: no such folder{way}")
            found[name] = str(_without_weights(place, Path(scratch) / name))
        base, *experts = found
        try:
            yield models.model_copy(
                update={"base": found[base], "experts": {name: found[name] for name in experts}}
            )
        except InputError as error:
            text = str(error)
            for name, folder in found.items():
                text = text.replace(folder, specs[name])
            raise InputError(text) from None


def _folders_beside(spec: str) -> list[str]:
    """The folders beside a path that is none itself; none where its parent is no folder either."""
    path = Path(spec).expanduser()
    if path.exists() or path.parent == Path() or not path.parent.is_dir():
        return []
    return [str(path.parent / one.name) for one in path.parent.iterdir() if one.is_dir()]


def _without_weights(folder: Path, to: Path) -> Path:
    """Make a folder of links to all files of a model but its weights."""
    to.mkdir()
    for file in folder.iterdir():
        if file.suffix in _LINKED and not file.name.endswith(".index.json"):
            (to / file.name).symlink_to(file.resolve())
    return to


def has_template(models: ModelsConfig) -> bool:
    """Tell whether the base's tokenizer has a chat template."""
    from evomerge.models.tokens.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(models.base), trust_remote_code=False)
    return bool(tokenizer is not None and getattr(tokenizer, "chat_template", None))


def layout_of_models(models: ModelsConfig) -> Layout:
    """Check models against each other by their configs; returns their layout.

    Raises:
        InputError: a config cannot be used, or the models do not fit together; names the model.
    """
    from evomerge.models.checks.configs_only import check_configs_only

    checked = check_configs_only(models)
    assert checked is not None, "folders without weights"
    return checked.layout


def _cost(asked: Asked, here: ModelsConfig, fitness: Mapping[str, Any]) -> Cost | None:
    """Reckon the hours of a trial from the models' shapes and this machine's speed.

    None where that cannot be known.
    """
    from evomerge.campaign.setup import prepare
    from evomerge.config.paths import absolute
    from evomerge.preflight.forecast import foresee
    from evomerge.preflight.work import Part

    plain = {"method": "task_arithmetic", "granularity": "model", "genes": {"weight": [0, 1.5]}}
    tasks = {key: value for key, value in fitness.items() if key not in ("rungs", "objective")}
    data = {
        "name": "estimate",
        "models": here.model_dump(),
        "space": {"weights": plain},
        "fitness": tasks,
        "budget": {"trials": 100},
    }
    config = absolute(parse_campaign(data, "init"), asked.folder.resolve())
    setup = prepare(config, unread=True)
    forecast = foresee(setup, asked.folder, 100)
    one = forecast.hours(Part(1, sum(setup.sizes("search").values())))
    nothing = forecast.hours(Part(0, 0))
    if math.isnan(one):
        return None
    trial = one - nothing
    return Cost(trial, max(0.0, forecast.hours(forecast.work) - 100 * trial), forecast.memory.own)


def _number(hours: float) -> float:
    """Return a whole number where it is one, as people write it."""
    return int(hours) if hours == int(hours) else hours


def _count_of(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _grain(weights: Mapping[str, Any]) -> str:
    return f"block of {weights['block']}" if "block" in weights else str(weights["granularity"])


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def complete(
    draft: Draft, asked: Asked, layout: Layout | None, template: bool | None = None
) -> tuple[Draft, list[Choice]]:
    """Add to a draft of another tool's file what that file does not say: tasks, splits, budget.

    Args:
        draft: paths in it are as seen from the current folder.
        asked: the tasks that are added, goal and hours.
        layout: of the models, where it is known, to count genes.
        template: whether the base has a chat template; None where that is not known.

    Raises:
        InputError: as `propose_fitness`.
    """
    data = {**draft.data, "fitness": dict(draft.data.get("fitness", {}))}
    lost, comments = list(draft.unmatched), dict(draft.why)
    if template is False and (text := _without_template(data)):
        lost.append(text)
        comments.pop("fitness.tasks", None)
    fitness, choices = propose_fitness(asked, data["fitness"])
    data["fitness"] = fitness
    data.setdefault("optimizer", asked.optimizer)
    if "budget" not in data:
        trials, why = _of_genes(data["space"], layout, list(data["models"]["experts"]))
        data["budget"] = {"trials": trials, "hours": _number(asked.hours)}
        choices.append(Choice("budget", f"{trials} trials, {asked.hours:g} hours", why))
    comments = {**{choice.key: choice.why for choice in choices}, **comments}
    return replace(draft, data=data, why=comments, unmatched=tuple(lost)), choices


def _of_genes(
    space: Mapping[str, Any], layout: Layout | None, experts: Sequence[str]
) -> tuple[int, str]:
    if layout is None:
        return 300, f"{TRIALS_A_GENE} a gene, which evomerge check counts"
    genes = count_genes(space, layout, experts)
    trials = min(_MOST_TRIALS, max(100, TRIALS_A_GENE * genes))
    return trials, f"{genes} genes, {TRIALS_A_GENE} trials each, at most {_MOST_TRIALS:,}"


def _without_template(data: dict[str, Any]) -> str | None:
    """Take `apply_chat_template` from the tasks; says so where there was any."""
    tasks = data["fitness"].get("tasks", [])
    if not any(task.get("apply_chat_template") for task in tasks):
        return None
    chat = ("apply_chat_template", "fewshot_as_multiturn")
    bare = [{key: of for key, of in task.items() if key not in chat} for task in tasks]
    data["fitness"] = {**data["fitness"], "tasks": bare}
    return "apply_chat_template: the base has no chat template (models.tokenizer.chat_template)"
