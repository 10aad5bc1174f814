"""Everything a campaign needs before its first candidate, checked and put together."""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.campaign.calibration_needs import check_needs, needed_digests
from evomerge.campaign.calibration_split import CalibrationSplit
from evomerge.campaign.chunks import notes_of, pieces_of
from evomerge.campaign.experts_asked import agreement_notes, check_experts, experts_asked
from evomerge.campaign.initial_points import (
    check_descents,
    check_polish,
    descents_of,
    initial_points,
)
from evomerge.common.digest import content_digest
from evomerge.common.errors import InputError
from evomerge.config import (
    AUDIT,
    SPLITS,
    AgreementTaskConfig,
    AnyTask,
    CallableConfig,
    CampaignConfig,
    ComposeTaskConfig,
    ObjectiveConfig,
    TaskConfig,
)
from evomerge.fitness.calibration.texts import Text, texts_digest
from evomerge.fitness.engines import check_engine, engine_identity, has_template
from evomerge.fitness.tasks.corpus_metrics import OWN
from evomerge.fitness.tasks.task_set import TaskItems, list_audit, list_items
from evomerge.judging.objectives import find_objective
from evomerge.judging.rung_items import check_rungs
from evomerge.judging.scores import Judge, JudgedTask, build_judge
from evomerge.judging.splits import Marks, deal
from evomerge.materialize.disk.recipe_models import with_recipes_made
from evomerge.models.checks.checked_models import CheckedModels, check_models
from evomerge.models.checks.configs_only import check_configs_only
from evomerge.models.mixture import config_with_experts
from evomerge.models.path_config import config_of_path
from evomerge.models.tokens.tokenizer import load_tokenizer, tokenizer_digest
from evomerge.recipe import BASE, Recipe
from evomerge.search.optimizers import Optimizer, build_optimizer
from evomerge.search.optimizers.base import REGISTRY
from evomerge.search.spaces.build import space_of
from evomerge.search.spaces.genes import Genome
from evomerge.search.spaces.space import Space
from evomerge.search.surrogates.loss_slopes import LossSlopes
from evomerge.trackers.base import Tracker
from evomerge.trackers.build import build_trackers
from evomerge.workers.devices import check_device, compute_dtype

SplitItems = dict[str, dict[str, list[str]]]
"""split → task → item ids."""


@dataclass(frozen=True)
class Setup:
    """A campaign that can work: its models fit, its space is sound, its splits are full.

    Attributes:
        models: the sources by name, and their common layout.
        space: with the campaign file's `initial` as its starts.
        tasks: the tasks, and the measures beside them, each with its items.
        items: split → task → item ids.
        judge: of any split; it has not met the parents.
        optimizer: before its first tell, for one campaign: it keeps what it is told.
        grid: the merges of `space.grid`, by name.
        trackers: by the names that messages give them.
        audit: the tasks of `fitness.audit`, each with its items.
        calibration: model → the texts that it is calibrated on, of those that have some.
        by_default: key of the campaign file → its value, as in the file: defaults that save items.
        said: these defaults in words, or why there are none; empty where nothing is to be said.
        pieces: label of a group of tensors → number of pieces in which they are cut, if any are.
    """

    config: CampaignConfig
    models: CheckedModels
    space: Space
    tasks: tuple[TaskItems, ...]
    items: SplitItems
    judge: Judge
    optimizer: Optimizer
    grid: Mapping[str, Recipe]
    trackers: Mapping[str, Tracker]
    audit: tuple[TaskItems, ...] = ()
    calibration: Mapping[str, Sequence[Text]] = field(default_factory=dict)
    by_default: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""
    pieces: Mapping[str, int] = field(default_factory=dict)

    def sizes(self, split: str) -> dict[str, int]:
        """task → how many items the split has; measures beside a task have its items."""
        counted = [task.task for task in self.tasks if task.weight > 0]
        return {task: len(self.items[split][task]) for task in counted}

    @property
    def kinds(self) -> dict[str, str]:
        """task → lm-eval's output type, `callable` or `agreement`, of those that count."""
        return {task.task: task.kind for task in self.tasks if task.weight > 0}

    @property
    def unanswered(self) -> list[str]:
        """What is wrong with each search document that has no right answer for a gradient."""
        search = self.items["search"]
        return [
            task.unanswered[item]
            for task in self.tasks
            for item in search[task.task]
            if item in task.unanswered
        ]

    @property
    def measured_items(self) -> SplitItems:
        """The items of the splits, and those of the audit's tasks, if there are any."""
        found = {t.task: [item for item in t.ids if item not in t.excluded] for t in self.audit}
        return {**self.items, AUDIT: found} if found else self.items

    @property
    def audit_judge(self) -> Judge:
        """The judge of the audit's tasks: their mean, which decides nothing."""
        tasks = [JudgedTask(t.task, t.weight, t.higher_is_better, t.corpus) for t in self.audit]
        return build_judge(tasks, ObjectiveConfig(kind="mean"), [], [])

    @property
    def measures(self) -> dict[str, str]:
        """Measure → the task beside whose score it is."""
        return _measures(self.tasks)

    @property
    def calibrated_on(self) -> dict[str, Any]:
        """Model → digest of its texts of calibration, and the tokens at which each is cut off."""
        said = self.config.calibration
        return {m: [texts_digest(t), said and said.tokens] for m, t in self.calibration.items()}

    @property
    def teachers(self) -> dict[str, Recipe]:
        """Name → the model as a recipe, of those with whose answers merges are compared."""
        parents = self.space.parents()
        return {name: parents[name] for name in experts_asked(self.config.fitness)}

    @property
    def first_rung(self) -> int:
        """Number of search items that every trial is asked for."""
        first = self.config.fitness.rungs[0]
        return first if isinstance(first, int) else sum(self.sizes("search").values())

    @property
    def most_trials(self) -> int:
        """Number of trials that the budget can at most be enough for."""
        budget = self.config.budget
        if budget.items is None:
            return budget.trials
        return min(budget.trials, math.ceil(budget.items / self.first_rung))

    def with_config(self, config: CampaignConfig, folder: Path | None = None) -> Setup:
        """Set up the same models, tasks and items under a config that searches otherwise.

        Args:
            config: to search by.
            folder: of its run, if there is one already.

        Raises:
            InputError: no such optimizer, one that cannot search this space, for these goals or
                within the budget, or rungs for which there are too few items.
        """
        config = with_own_loss(config)
        same = config.space.weights == self.config.space.weights
        pieces = pieces_of(config, self.models, folder, self.pieces if same else None)
        setup = replace(self, pieces=pieces)
        return setup._searching(config, _space(config, self.models, pieces))

    def with_search(self, config: CampaignConfig) -> Setup:
        """Set up the same space and starts under a config with another optimizer or other rungs.

        Raises:
            InputError: as `with_config`.
        """
        return self._searching(config, self.space)

    def _searching(self, config: CampaignConfig, space: Space) -> Setup:
        searched = _searched_by(config, space)
        setup = replace(self, config=config, space=space, by_default={}, said="", **searched)
        _check_search(setup)
        return setup

    def with_starts(
        self,
        genomes: Sequence[Genome],
        scales: Sequence[Sequence[float] | None] = (),
        loss: LossSlopes | None = None,
    ) -> Setup:
        """The same set-up with a new optimizer, which tries these genomes before all others.

        Args:
            genomes: to try first.
            scales: how far each gene may vary around each of them, where that is known.
            loss: as gradients told it, for the surrogate that screens proposals.
        """
        space = copy.copy(self.space)
        unique = {genome.tobytes(): genome for genome in (*genomes, *space.starts)}
        space.starts = tuple(unique.values())
        known = zip(genomes, scales, strict=False)
        space.scales = {at.tobytes(): np.array(scale) for at, scale in known if scale}
        space.loss = loss
        optimizer = build_optimizer(self.config.optimizer, space, self.config.seed)
        return replace(self, space=space, optimizer=optimizer)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that must not change when a study is resumed; paths and budgets may."""
        config, fitness = self.config, self.config.fitness
        return {
            "models": {name: source.digest for name, source in self.models.sources.items()},
            "sources": list(self.models.sources),  # experts are merged in this order
            **(
                {"statistics": files}
                if (files := needed_digests(config, self.models.sources))
                else {}
            ),
            "space": config.space.model_dump(mode="json", exclude={"grid"}),
            "genes": [gene.name for gene in self.space.genes],
            "initial": [content_digest(start.tolist()) for start in self.space.starts],
            **(
                {"descents": [one.model_dump(mode="json") for one in descents.values()]}
                if (descents := descents_of(config.initial))
                else {}
            ),
            **(
                {"surrogate_loss": fitness.surrogate_loss.model_dump(mode="json")}
                if descents or self.optimizer.descends(1)
                else {}
            ),
            "fitness": {
                "tasks": _identities(fitness.tasks),
                **({"engine": dict(said)} if (said := engine_identity(config)) else {}),
                "objective": fitness.objective.model_dump(mode="json"),
                **(
                    {"constraints": [c.model_dump(mode="json") for c in fitness.constraints]}
                    if fitness.constraints
                    else {}
                ),
                **(
                    {
                        "rungs": fitness.rungs,
                        "race": fitness.race.model_dump(mode="json"),
                        "estimator": fitness.estimator,
                    }
                    if len(fitness.rungs) > 1
                    else {}
                ),
                "splits": fitness.splits,
                "fewshot_seed": fitness.fewshot_seed,
                "documents": {t.task: content_digest(t.ids) for t in self.tasks},
                "prompts": {t.task: t.asked for t in self.tasks},
                **(
                    {"audit": {t.task: [content_digest(t.ids), t.asked] for t in self.audit}}
                    if self.audit
                    else {}
                ),
            },
            **({"calibration": self.calibrated_on} if self.calibration else {}),
            "tokenizer": tokenizer_digest(self.models.sources[BASE].tokenizer_folder),
            "dtype": {"weights": config.dtype.weights, "compute": compute_dtype(config)},
            "optimizer": config.optimizer.model_dump(mode="json"),
            "seed": config.seed,
            "versions": {"lm_eval": version("lm_eval")},
        }


def prepare(config: CampaignConfig, folder: Path | None = None, *, unread: bool = False) -> Setup:
    """Open and check models, tasks and space; compute nothing that a candidate needs.

    Args:
        config: the campaign.
        folder: its run's, if there may be one already.
        unread: models may lack their weights; their configs are enough to look at the campaign.

    Raises:
        InputError: whatever would fail later; names file or key.
    """
    # 1. What needs the campaign file and this machine alone.
    config = with_own_loss(config)
    if not unread and not config.workers.on_ray:
        check_device(config)
    wanted = config.fitness.objective
    find_objective(wanted.kind, "fitness.objective", wanted.options)
    trackers = build_trackers(config)
    # 2. Models and space.
    models = check_configs_only(config.models) if unread else None
    models = models or check_models(with_recipes_made(config.models))
    pieces = pieces_of(config, models, folder)
    space = _space(config, models, pieces)
    cut = notes_of(config, pieces, not models.configs_only)
    models = replace(models, notes=(*models.notes, *space.notes, *cut))
    _check_chat_template(config, models)
    # 3. Tasks, and the splits of their items.
    tasks = list_items(config.fitness)
    audit = list_audit(config.fitness)
    _check_audit(audit, tasks)
    check_engine(config, {task.task: task.kind for task in tasks})
    check_experts(config, models, [task.task for task in tasks])
    calibration = CalibrationSplit(config, tasks)
    items, notes = deal_items(tasks, config, calibration.aside)
    texts = calibration.texts(items, audit)
    _check_texts(config, models, texts)
    notes += agreement_notes(tasks)
    # 4. The search over them.
    setup = Setup(
        config=config,
        models=replace(models, notes=(*models.notes, *notes)),
        space=space,
        tasks=tasks,
        items=items,
        judge=_judge(config, models, tasks),
        trackers=trackers,
        audit=audit,
        calibration=texts,
        pieces=pieces,
        **_searched_by(config, space),
    )
    _check_search(setup)
    return setup


def with_own_loss(config: CampaignConfig) -> CampaignConfig:
    """Give a campaign the loss that its optimizer is named for, where it says none.

    Raises:
        InputError: no such optimizer, or the campaign file names another loss.
    """
    wanted = config.optimizer.kind
    own = REGISTRY.find(wanted, "optimizer.kind").loss
    said = config.fitness.surrogate_loss
    if own is None or said.kind == own:
        return config
    if "kind" in said.model_fields_set:
        raise InputError(
            f"fitness.surrogate_loss.kind: {wanted} follows {own}, not {said.kind}; leave it out, "
            "or write optimizer.kind: gradient"
        )
    loss = said.model_copy(update={"kind": own})
    fitness = config.fitness.model_copy(update={"surrogate_loss": loss})
    return config.model_copy(update={"fitness": fitness})


def _check_audit(audit: Sequence[TaskItems], tasks: Sequence[TaskItems]) -> None:
    """Refuse an audit of what the search uses.

    Raises:
        InputError: names the task.
    """
    searched = {task.task for task in tasks}
    for task in audit:
        if task.task in searched:
            raise InputError(
                f"fitness.audit.tasks: {task.task} is searched on; name tasks that "
                "fitness.tasks does not hold, for what is forgotten shows on others"
            )
        if len(task.excluded) == len(task.ids):
            raise InputError(f"fitness.audit.tasks: {task.task} has no items left to score")


def _searched_by(config: CampaignConfig, space: Space) -> dict[str, Any]:
    """The fields of a set-up that hold how its space is searched.

    Raises:
        InputError: no such optimizer, one that cannot search this space, or too large a grid.
    """
    points = config.space.grid
    return {
        "optimizer": build_optimizer(config.optimizer, space, config.seed),
        "grid": {} if points is None else space.grid(points),
    }


def _check_search(setup: Setup) -> None:
    """Refuse rungs, goals, options or a budget with which the search cannot work.

    Raises:
        InputError: names the key.
    """
    check_rungs(setup.config.fitness.rungs, setup.sizes("search"))
    own = [task.task for task in setup.tasks if task.aggregate == OWN]
    if own and len(setup.config.fitness.rungs) > 1:
        raise InputError(
            f"fitness.rungs: {', '.join(own)} is aggregated by a function of the task's own, which "
            "gives the score of a rung's documents and of all, and none from the other; leave "
            "rungs out, or choose another metric"
        )
    learned = (setup.config, setup.space, setup.kinds, setup.unanswered)
    check_polish(*learned, setup.judge.goals)
    proposed = setup.optimizer.descends(setup.most_trials)
    check_descents(*learned, proposed and proposed[0])
    setup.optimizer.check_goals(setup.judge.goals)
    setup.optimizer.check_budget(setup.most_trials)
    setup.optimizer.check_metrics([task.task for task in setup.tasks])


def _space(config: CampaignConfig, models: CheckedModels, pieces: Mapping[str, int]) -> Space:
    if not models.configs_only:
        check_needs(config, models.sources)
    if config.space.mixture is not None:
        _check_mixture(config, models)
    space = space_of(config, models, pieces)
    space.starts = () if models.configs_only else tuple(initial_points(config, space, models))
    if config.space.path.kind != "none":
        _check_depths(config, models)
    return space


def _check_texts(
    config: CampaignConfig, models: CheckedModels, texts: Mapping[str, Sequence[Text]]
) -> None:
    """Refuse calibration files of `calibration.folder` that were made of other texts than are said.

    Raises:
        InputError: names the file.
    """
    for name, own in texts.items() if not models.configs_only else ():
        file = models.sources[name].calibration
        ours = file and config.calibration and file.path.parent == Path(config.calibration.folder)
        if file and ours and file.head.documents != texts_digest(own):
            raise InputError(
                f"{file.path}: was made of other texts than the campaign's (calibration); remove "
                "it and run evomerge calibrate again, or name it in models.statistics and take "
                "calibration out"
            )


def _judge(config: CampaignConfig, models: CheckedModels, tasks: Sequence[TaskItems]) -> Judge:
    """The objective and the constraints, over the tasks that there are."""
    fitness = config.fitness
    judged = [JudgedTask(t.task, t.weight, t.higher_is_better, t.corpus) for t in tasks]
    return build_judge(judged, fitness.objective, fitness.constraints, list(models.sources))


def _check_depths(config: CampaignConfig, models: CheckedModels) -> None:
    """Refuse models whose config cannot express layers in another order and number.

    Raises:
        InputError: their architecture, and what to write instead.
    """
    forwards = range(models.layout.layers)
    flags = {"trust_remote_code": config.models.trust_remote_code}
    try:
        config_of_path(models.sources[BASE].config, [*forwards, *reversed(forwards)], **flags)
    except InputError as error:
        raise InputError(
            f"space.path: winners could not be exported: {error}; write path: none"
        ) from None


def _check_mixture(config: CampaignConfig, models: CheckedModels) -> None:
    """Refuse a mixture that no standard checkpoint can hold with fewer experts.

    Raises:
        InputError: names the key and the base's folder.
    """
    base, mixture = models.sources[BASE], config.space.mixture
    flags = {"trust_remote_code": config.models.trust_remote_code}
    assert mixture is not None
    for experts in dict.fromkeys(mixture.bounds):
        try:
            config_with_experts(base, models.layout, experts, **flags)
        except InputError as error:
            where = f"space.mixture: {base.folder / 'config.json'}"
            raise InputError(f"{where}: {error}") from None


def _identities(tasks: Sequence[AnyTask]) -> dict[str, Any]:
    """Name → identity of each entry; further entries of a task stand under `task.metric`."""
    found: dict[str, Any] = {}
    for task in tasks:
        name = task.task
        if isinstance(task, TaskConfig) and name in found:
            name = f"{name}.{task.metric}"
        found[name] = _identity_of(task)
    return found


def _identity_of(task: AnyTask) -> dict[str, Any]:
    """An entry without its paths: code, documents and prompts are digests elsewhere."""
    if isinstance(task, AgreementTaskConfig):
        return task.model_dump(mode="json", exclude={"agreement": {"prompts"}})
    if isinstance(task, CallableConfig):
        return {**task.model_dump(mode="json", exclude={"documents"}), "callable": task.function}
    if isinstance(task, ComposeTaskConfig):
        return task.model_dump(mode="json")
    # Measures stand in it only where there are any: older studies know no such key.
    return task.model_dump(mode="json", exclude=None if task.measures else {"measures"})


def _check_chat_template(config: CampaignConfig, models: CheckedModels) -> None:
    """Refuse `apply_chat_template` where the tokenizer has none, before a worker is built.

    Raises:
        InputError: names the task and the tokenizer's folder.
    """
    if has_template(config):
        return
    asking = [task.task for task in config.fitness.lm_eval_tasks if task.apply_chat_template]
    asking += [t.task for t in config.fitness.agreements if t.agreement.apply_chat_template]
    composed = [t for t in config.fitness.tasks if isinstance(t, ComposeTaskConfig)]
    asking += [task.task for task in composed if task.apply_chat_template]
    folder = models.sources[BASE].tokenizer_folder
    tokenizer = load_tokenizer(folder, trust_remote_code=config.models.trust_remote_code)
    if models.configs_only and tokenizer is None:
        return
    if asking and not (tokenizer and tokenizer.chat_template):
        raise InputError(
            f"fitness.tasks: {asking[0]} has apply_chat_template, but the base model's tokenizer "
            f"in {folder} has no chat template"
        )


def deal_items(
    tasks: Sequence[TaskItems], config: CampaignConfig, aside: Mapping[str, Container[str]]
) -> tuple[SplitItems, list[str]]:
    """Deal the tasks' items into splits; return them, and notes for the user.

    Args:
        aside: task → items that are for calibration alone.

    Raises:
        InputError: a task has no items, or a split cannot be filled.
    """
    measures = _measures(tasks)
    scored: dict[str, Marks] = {}
    for task in tasks:
        marked = zip(task.ids, task.marks, strict=True)
        left_out = (task.excluded, aside.get(task.task, ()))
        found = {i: marks for i, marks in marked if not any(i in out for out in left_out)}
        if not found:
            raise InputError(f"fitness.tasks: {task.task} has no items left to score")
        if task.task not in measures:
            scored[task.task] = found
    dealt, shared = deal(scored, config.fitness.splits)
    items = {
        split: {t.task: dealt[measures.get(t.task, t.task)][split] for t in tasks}
        for split in SPLITS
    }
    # documents that are joined somewhere are tied to each other, and shared by that alone
    tied = [{task.task, *task.composed_of} for task in tasks if task.composed_of]
    notes = [
        f"{found}: each is dealt to the same split in both"
        for found in shared
        if not any(family.issuperset(found.tasks) for family in tied)
    ]
    notes += [
        f"{task.task} joins documents of {' and '.join(task.composed_of)}: each lies in one split "
        "with those that it is made of"
        for task in tasks
        if task.composed_of
    ]
    for split, dealt_there in items.items():
        alone = [t for t in scored if len({item.partition("#")[0] for item in dealt_there[t]}) == 1]
        if alone:
            notes.append(
                f"fitness.splits: {split} has one document of {', '.join(alone)}, whose score says "
                "next to nothing there; give more documents, or another share of them"
            )
    if own := [task.task for task in tasks if task.aggregate == OWN]:
        notes.append(
            f"{', '.join(own)}: aggregated by a function of the task's own, so its score is of a "
            "split as a whole and no document is right or wrong by itself; intervals and "
            "comparisons are the jackknife's, which leaves documents out one by one"
        )
    if running := [task.task for task in tasks if task.runs_code and task.weight > 0]:
        notes.append(
            f"WARNING: {', '.join(running)} run code that candidates write, on this machine, with "
            "your rights and on your files (fitness.run_unsafe_code)"
        )
    return items, notes


def _measures(tasks: Sequence[TaskItems]) -> dict[str, str]:
    counted = [task.task for task in tasks if task.weight > 0]
    return {
        measure.task: max((t for t in counted if measure.task.startswith(f"{t}.")), key=len)
        for measure in tasks
        if measure.weight == 0
    }
