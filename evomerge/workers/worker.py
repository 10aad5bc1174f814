"""A worker: an engine and the campaign's tasks, built once, which measures recipes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evomerge.config import CampaignConfig
from evomerge.recipe import BASE, Recipe
from evomerge.workers.devices import compute_dtype, gpu_memory_plan

if TYPE_CHECKING:
    from evomerge.models.alignment.git_rebasin import Alignment
    from evomerge.models.checkpoint import Checkpoint


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
    """

    config: CampaignConfig
    items: Mapping[str, Mapping[str, Sequence[str]]]
    threads: int
    alignments: Mapping[str, Alignment] = field(default_factory=dict)
    statistics: Path | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """A recipe's item scores on a split.

    Attributes:
        scores: task → float64 (items,).
        seconds: stage (`materialize`, `score`) → its duration.
        facts: what the engine reports of itself, to be recorded.
    """

    scores: Mapping[str, np.ndarray]
    seconds: Mapping[str, float]
    facts: Mapping[str, int] = field(default_factory=dict)


class Worker:
    """Materializes recipes in place and scores them."""

    def __init__(self, spec: WorkerSpec, *, elsewhere: bool = False) -> None:
        """Open the models, build the engine and all requests.

        Args:
            elsewhere: this may be another machine than the driver's; models and tasks are checked
                to be the driver's own.

        Raises:
            InputError: models or tasks cannot be loaded here, or are not the campaign's.
        """
        import torch

        from evomerge.fitness.engines import EngineContext, build_engine
        from evomerge.fitness.tasks.task_set import TaskSet
        from evomerge.materialize.kernel import Kernel
        from evomerge.materialize.statistics.statistics import Statistics
        from evomerge.materialize.statistics.store import Store
        from evomerge.models.checks.digests import check_digests
        from evomerge.models.open_models import open_models

        torch.set_num_threads(spec.threads)
        config, models = spec.config, spec.config.models
        sources = open_models(models, spec.alignments)
        if elsewhere:
            check_digests(sources, spec.digests, spec.statistics)
        plan = gpu_memory_plan(config, sources, spec.threads)
        store = Store(spec.statistics, spec.digests) if spec.statistics else None
        kernel = Kernel(
            sources,
            config.dtype.weights,
            config.chunk_mib << 20,
            statistics=Statistics(plan.statistics if plan else None, store),
            feed=plan.feed(sources) if plan else None,
        )
        write = partial(_write, spec, sources)
        self._engine = build_engine(
            EngineContext(config, sources[BASE], kernel, compute_dtype(config), write, spec.facts)
        )
        self._tasks = TaskSet(config.fitness, self._engine)
        if elsewhere:
            self._tasks.check(spec.items)
        self._items = spec.items
        self._written: str | None = None  # the digest of the recipe now in the model

    def measure(
        self, recipe: Recipe, split: str, items: Mapping[str, Sequence[str]] | None = None
    ) -> Measurement:
        """Load the recipe and score it on a split's items.

        Args:
            items: task → item ids to score instead of the split's; then the recipe that was
                loaded last is not loaded again.

        Raises:
            CandidateError: the recipe's weights are not finite, or it cannot be scored.
        """
        started = time.perf_counter()
        if items is None or self._written != recipe.digest:
            self._written = None
            self._engine.load(recipe)
            self._written = recipe.digest
        written = time.perf_counter()
        scores = self._tasks.score(self._items[split] if items is None else items)
        done = time.perf_counter()
        seconds = {"materialize": written - started, "score": done - written}
        return Measurement(scores, seconds, self._engine.facts)


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
