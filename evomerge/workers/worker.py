"""One worker: a resident model and the campaign's tasks, built once, fed with recipes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evomerge.config import CampaignConfig
from evomerge.recipe import Recipe
from evomerge.workers.devices import compute_dtype, place

if TYPE_CHECKING:
    from evomerge.models.alignment import Alignment


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker is built from; small, and picklable.

    Attributes:
        config: the campaign.
        items: split → task → item ids, in the order in which scores come back.
        threads: of torch's arithmetic.
        alignments: the permutations of the experts that are aligned, as the driver found them.
        statistics: the folder where what the models alone decide is kept and shared, if any.
        digests: model → digest of its content.
    """

    config: CampaignConfig
    items: Mapping[str, Mapping[str, Sequence[str]]]
    threads: int
    alignments: Mapping[str, Alignment] = field(default_factory=dict)
    statistics: Path | None = None
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """A recipe's item scores on a split: task → float64 (items,), and where the time went."""

    scores: Mapping[str, np.ndarray]
    seconds: Mapping[str, float]


class Worker:
    """Materializes recipes in place and scores them."""

    def __init__(self, spec: WorkerSpec, *, elsewhere: bool = False) -> None:
        """Open the models, build the resident model and all requests.

        `elsewhere`: this may be another machine than the driver's; models and tasks are seen to be
        the driver's own.

        Raises:
            InputError: models or tasks cannot be loaded here, or are not the campaign's.
        """
        import torch

        from evomerge.fitness.engine import make_lm
        from evomerge.fitness.tasks import TaskSet
        from evomerge.materialize.kernel import Kernel
        from evomerge.materialize.resident import Resident
        from evomerge.materialize.statistics import Statistics
        from evomerge.materialize.store import Store
        from evomerge.models.opening import open_models
        from evomerge.models.tokenizer import load_tokenizer
        from evomerge.models.verify import check_digests

        torch.set_num_threads(spec.threads)
        config, models = spec.config, spec.config.models
        sources = open_models(models, spec.alignments)
        if elsewhere:
            check_digests(sources, spec.digests, spec.statistics)
        kept = place(config, sources, spec.threads)
        store = Store(spec.statistics, spec.digests) if spec.statistics else None
        kernel = Kernel(
            sources,
            config.dtype.weights,
            config.chunk_mib << 20,
            statistics=Statistics(kept.statistics if kept else None, store),
            feed=kept.feed(sources) if kept else None,
        )
        base = sources["base"]
        compute = getattr(torch, compute_dtype(config))
        parallel = config.workers.spreads
        self._resident = Resident(base.layout, kernel, compute, models.trust_remote_code, parallel)
        tokenizer = load_tokenizer(base.folder, trust_remote_code=models.trust_remote_code)
        lm = make_lm(self._resident.model, tokenizer, config.fitness.batch_size)
        self._tasks = TaskSet(config.fitness, lm)
        if elsewhere:
            self._tasks.check(spec.items)
        self._items = spec.items
        self._written: str | None = None  # the digest of the recipe now in the model

    def measure(
        self, recipe: Recipe, split: str, items: Mapping[str, Sequence[str]] | None = None
    ) -> Measurement:
        """Write the recipe into the resident model and score it on a split's items.

        Args:
            items: task → item ids to score instead of the split's; then a recipe that was the last
                to be written is not written again.

        Raises:
            CandidateError: the recipe's weights are not finite, or it cannot be scored.
        """
        started = time.perf_counter()
        if items is None or self._written != recipe.digest:
            self._written = None
            self._resident.write(recipe)
            self._written = recipe.digest
        written = time.perf_counter()
        scores = self._tasks.score(self._items[split] if items is None else items)
        done = time.perf_counter()
        return Measurement(scores, {"materialize": written - started, "score": done - written})
