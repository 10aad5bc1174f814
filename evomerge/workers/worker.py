"""A worker: an engine and the campaign's tasks, built once, which measures recipes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.common.errors import InputError
from evomerge.config import AUDIT, CampaignConfig
from evomerge.recipe import BASE, MergeCoefficient, Recipe
from evomerge.workers.devices import check_device, compute_dtype, device_of, gpu_memory_plan

if TYPE_CHECKING:
    from evomerge.fitness.document_loss import DocumentLoss
    from evomerge.fitness.expert_answers import ExpertAnswers, Experts, Question
    from evomerge.judging.answer_facts import AnswerFacts
    from evomerge.materialize.statistics.store import Store
    from evomerge.models.alignment.git_rebasin import Alignment
    from evomerge.models.checkpoint import Checkpoint
    from evomerge.models.checks.unchanged import FileState


PACKAGES = ("lm_eval", "torch", "transformers")
"""Packages whose versions decide scores, beside evomerge itself."""


@dataclass(frozen=True)
class WorkerSpec:
    """Everything that a worker is built from; small, and picklable.

    Attributes:
        config: the campaign.
        items: split → task → item ids, in the order in which scores come back.
        threads: number of threads of torch's arithmetic.
        alignments: expert → the permutation that aligns it, as the driver found it.
        statistics: the folder in which workers share what the models alone decide, if any.
        digests: model → digest of its content.
        facts: the engine's facts of earlier runs of the campaign.
        files: weight file → its state when the driver opened it, on the driver's machine; workers
            elsewhere look at their own.
        teachers: name → the model as a recipe, of those with whose answers merges are compared.
    """

    config: CampaignConfig
    items: Mapping[str, Mapping[str, Sequence[str]]]
    threads: int
    alignments: Mapping[str, Alignment] = field(default_factory=dict)
    statistics: Path | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[Path, FileState] = field(default_factory=dict)
    teachers: Mapping[str, Recipe] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Split → number of its items, of all tasks."""
        return {split: sum(map(len, tasks.values())) for split, tasks in self.items.items()}


@dataclass(frozen=True)
class Measurement:
    """A recipe's item scores on a split.

    Attributes:
        scores: task → float64 (items,).
        seconds: stage (`materialize`, `score`) → its duration.
        facts: what the engine reports of itself, to be recorded.
        weights: a `WeightsRecord` as plain data, where the job asked for one.
        answers: task → facts about its generated answers, where they were looked at.
        reuse: as `Engine.reuse`; empty where the recipe was in the engine already.
    """

    scores: Mapping[str, np.ndarray]
    seconds: Mapping[str, float]
    facts: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, Any] | None = None
    answers: Mapping[str, AnswerFacts] = field(default_factory=dict)
    reuse: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Gradient:
    """Documents' losses under a recipe, and their derivatives in its coefficients.

    Attributes:
        losses: task → float64 (items,).
        derivatives: what was differentiated → coefficient → derivative; empty where only losses
            were asked for.
        seconds: stage (`materialize`, `gradient`) → its duration.
        facts: what the engine reports of itself, to be recorded.
    """

    losses: Mapping[str, np.ndarray]
    derivatives: Mapping[str, Mapping[MergeCoefficient, float]]
    seconds: Mapping[str, float]
    facts: Mapping[str, int] = field(default_factory=dict)


MIXED = "all"
"""The name of the derivatives of a weighted sum of all tasks' losses."""


class Worker:
    """Materializes recipes in place and scores them."""

    def __init__(self, spec: WorkerSpec, *, elsewhere: bool = False) -> None:
        """Open the models, build the engine and all requests.

        Args:
            elsewhere: this may be another machine than the driver's; models and tasks are checked
                to be the driver's own.

        Raises:
            InputError: models or tasks cannot be loaded here, or are not the campaign's.
            StoppedError: the models' files have changed since the driver opened them.
        """
        import torch

        from evomerge.fitness.engines import EngineContext, build_engine
        from evomerge.fitness.tasks.task_set import TaskSet
        from evomerge.materialize.feed import CopyStream
        from evomerge.materialize.kernel import Kernel
        from evomerge.materialize.statistics.statistics import Statistics
        from evomerge.materialize.statistics.store import Store
        from evomerge.models.checks.digests import check_digests
        from evomerge.models.checks.unchanged import check_unchanged, weight_files
        from evomerge.models.open_models import open_models

        torch.set_num_threads(spec.threads)
        config, models = spec.config, spec.config.models
        check_device(config)
        if not elsewhere:
            check_unchanged(spec.files)
        sources = open_models(models, spec.alignments)
        files = weight_files(source.folder for source in sources.values())
        self._check_files = partial(check_unchanged, files if elsewhere else spec.files)
        if elsewhere:
            check_digests(sources, spec.digests, spec.statistics)
        plan = gpu_memory_plan(config, sources, spec.threads)
        if plan is not None:
            plan.check()
        store = Store(spec.statistics, spec.digests) if spec.statistics else None
        kernel = Kernel(
            sources,
            config.dtype.weights,
            config.chunk_mib << 20,
            statistics=Statistics(plan.statistics if plan else None, store),
            feed=plan.feed(sources, CopyStream(device_of(config))) if plan else None,
        )
        write = partial(_write, spec, sources)
        self._engine = build_engine(
            EngineContext(config, sources[BASE], kernel, compute_dtype(config), write, spec.facts)
        )
        self._written: str | None = None  # the digest of the recipe now in the model
        experts = self._experts(spec, sources, store)
        self._tasks = TaskSet(config.fitness, self._engine, experts)
        audit = config.fitness.of_audit
        self._audit = None if audit is None else TaskSet(audit, self._engine)
        if elsewhere:
            self._tasks.check({split: spec.items[split] for split in spec.items if split != AUDIT})
            if self._audit is not None:
                self._audit.check({AUDIT: spec.items[AUDIT]})
        self._items = spec.items
        if experts.keeps:  # else each is asked when its answers are needed
            scored = [items for split, items in spec.items.items() if split != AUDIT]
            tasks = dict.fromkeys(task for items in scored for task in items)
            everything = {
                task: [item for items in scored for item in items.get(task, ())] for task in tasks
            }
            self._tasks.ask_experts(everything)
            self._tasks.ask_experts(spec.items["search"], losses=True)

    def measure(
        self,
        recipe: Recipe,
        split: str,
        items: Mapping[str, Sequence[str]] | None = None,
        counted: bool = False,
    ) -> Measurement:
        """Load the recipe and score it on a split's items.

        Args:
            items: task → item ids to score instead of the split's; then the recipe that was
                loaded last is not loaded again.
            counted: with facts about generated answers; on other splits than search they always
                are.

        Raises:
            CandidateError: the recipe's weights are not finite, or it cannot be scored.
            StoppedError: a model's files have changed.
        """
        wanted = self._items[split] if items is None else items
        if split != AUDIT:
            self._tasks.ask_experts(wanted)
        started = time.perf_counter()
        loaded = self._load(recipe, again=items is None)
        written = time.perf_counter()
        counted = counted or split != "search"
        tasks = self._audit if split == AUDIT and self._audit is not None else self._tasks
        parameters = self._parameters_of(recipe) if tasks.sized else 0
        scores = tasks.score(wanted, counted, parameters)
        answers = tasks.answer_facts(wanted) if counted else {}
        self._check_files()  # also after: they may have changed while they were merged
        done = time.perf_counter()
        seconds = {"materialize": written - started, "score": done - written}
        reuse = self._engine.reuse if loaded else {}
        return Measurement(scores, seconds, self._engine.facts, answers=answers, reuse=reuse)

    def _parameters_of(self, recipe: Recipe) -> int:
        """Count the numbers of a recipe's weights."""
        from evomerge.materialize.plan import plan

        sources = self._engine.context.kernel.sources
        steps = plan(recipe, self._engine.context.base.layout, sources)
        return sum(math.prod(step.shape) for step in steps)

    def losses(self, recipe: Recipe, items: Mapping[str, Sequence[str]]) -> Gradient:
        """Load the recipe and compute its losses on search items, without derivatives.

        Raises:
            CandidateError, InputError: as `gradient`.
        """
        started = time.perf_counter()
        documents = self._losses_of(items)
        self._load(recipe)
        written = time.perf_counter()
        found = {task: self._engine.losses(own) for task, own in documents.items()}
        seconds = {"materialize": written - started, "gradient": time.perf_counter() - written}
        return Gradient(found, {}, seconds, self._engine.facts)

    def gradient(
        self,
        recipe: Recipe,
        items: Mapping[str, Sequence[str]],
        weights: Mapping[str, float] | None = None,
    ) -> Gradient:
        """Load the recipe and differentiate its losses on search items in its coefficients.

        The loss of a task is the mean of its documents' (`fitness.tasks.surrogate_losses`). Costs
        three forward passes of the documents.

        Args:
            items: task → ids of items of the search split.
            weights: task → weight; then the weighted sum of the tasks' losses is differentiated,
                under the name `MIXED`, in fewer passes. None: each task's loss, under its name.

        Raises:
            CandidateError: the recipe's weights, or a loss, are not finite.
            InputError: an item is not of the search split, a task has no loss, or the engine no
                backward pass.
        """
        started = time.perf_counter()
        documents = self._losses_of(items)
        self._load(recipe)
        written = time.perf_counter()
        # 1. what is differentiated together: each task by itself, or all with their weights
        together = list(documents)
        groups = {task: [task] for task in together} if weights is None else {MIXED: together}
        losses: dict[str, np.ndarray] = {}
        derivatives = {}
        for name, tasks in groups.items():
            # 2. a task's loss is the mean over its documents
            factors = {task: (weights or {}).get(task, 1.0) / len(items[task]) for task in tasks}
            weighted = [(one, factors[task]) for task in tasks for one in documents[task]]
            found, derivatives[name] = self._engine.gradient(recipe, weighted)
            # 3. the losses, dealt back to their tasks
            ends = np.cumsum([len(documents[task]) for task in tasks])[:-1]
            losses.update(zip(tasks, np.split(found, ends), strict=True))
        seconds = {"materialize": written - started, "gradient": time.perf_counter() - written}
        return Gradient(losses, derivatives, seconds, self._engine.facts)

    def _losses_of(self, items: Mapping[str, Sequence[str]]) -> dict[str, list[DocumentLoss]]:
        """The losses of search items; no other split's documents may be learned from."""
        if not self._engine.differentiable:
            raise InputError("fitness.engine: this engine has no backward pass; use hf")
        for task, ids in items.items():
            own = set(self._items["search"].get(task, ()))
            if other := [item for item in ids if item not in own]:
                raise InputError(f"{task}: item {other[0]} is not of the search split")
        wanted = {task: ids for task, ids in items.items() if ids}
        self._tasks.ask_experts(wanted, losses=True)
        return self._tasks.losses(wanted)

    def _experts(
        self, spec: WorkerSpec, sources: Mapping[str, Checkpoint], store: Store | None
    ) -> Experts:
        """What gives experts' answers; asking one loads it into the engine."""
        from evomerge.fitness.expert_answers import Experts
        from evomerge.models.tokens.tokenizer import tokenizer_digest

        def ask(recipe: Recipe, prompts: Sequence[str], question: Question) -> ExpertAnswers:
            self._load(recipe)
            return self._engine.expert_answers(prompts, question)

        config = spec.config
        tokenizer = config.models.tokenizer
        key = [
            tokenizer_digest(sources[BASE].tokenizer_folder),
            None if tokenizer is None else tokenizer.model_dump(mode="json"),
            config.dtype.weights,
            compute_dtype(config),
        ]
        return Experts(spec.teachers, ask, store, key)

    def _load(self, recipe: Recipe, again: bool = False) -> bool:
        """Load a recipe, unless it is there and not asked for `again`; say whether it was."""
        self._check_files()
        if not again and self._written == recipe.digest:
            return False
        self._written = None
        self._engine.load(recipe)
        self._written = recipe.digest
        return True

    def weights(self, recipe: Recipe) -> Mapping[str, Any] | None:
        """Record the weights of the recipe that was measured last, for exports to compare with.

        None where the engine does not know them, or no checkpoint can say the recipe.
        """
        try:
            found = self._engine.weights(recipe)
        except InputError:
            return None
        return None if found is None else found.model_dump(mode="json")


def _write(
    spec: WorkerSpec, sources: Mapping[str, Checkpoint], recipe: Recipe, folder: Path
) -> Path:
    """Write a recipe as a checkpoint into a new folder."""
    from evomerge.materialize.disk.checkpoint import write_checkpoint
    from evomerge.models.checks.checked_models import CheckedModels

    return write_checkpoint(
        recipe,
        CheckedModels(sources[BASE].layout, sources, ()),
        spec.config.dtype,
        folder,
        trust_remote_code=spec.config.models.trust_remote_code,
        statistics=spec.statistics,
    )
