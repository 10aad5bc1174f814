"""Try one candidate in a process of its own, which may be killed for want of memory.

Where the models are here, candidates are merged and scored as a worker does it; where only their
configs are, both are estimated (`estimate_scoring`, `estimate_merging`). The memory that scoring
takes is always estimated, of the largest batch, which a candidate may meet late. If the model that
answers is elsewhere, it takes none here, and without weights its seconds are not known.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.common.errors import CandidateError, EvomergeError
from evomerge.config import CallableConfig
from evomerge.fitness.engines import scores_here
from evomerge.models.messages import reason
from evomerge.recipe import Recipe
from evomerge.workers.devices import compute_dtype, device_of
from evomerge.workers.worker import Measurement, Worker, WorkerSpec

if TYPE_CHECKING:
    from evomerge.preflight.estimate_merging import MergeCost
    from evomerge.preflight.estimate_scoring import ScoringEstimate

_ENOUGH = 20.0
"""Seconds of scoring that tell how long all items take."""
_SMALL = 64 << 20
"""Bytes of a model that is tried in this process, without seconds of loading libraries again."""
_FIRST, _GROWTH = 2, 4
"""Items of each task that are scored first, and by how much more when that was quick."""
_LOOKED_AT = 3
"""Rounds of so many items (2, 8, 32 of each task) in which the ends of answers are looked at."""


@dataclass(frozen=True)
class ProbeSpec:
    """Holds what a probe needs; small, and picklable.

    Attributes:
        spec: of the campaign's workers.
        folder: of the base.
        tokenizer: the folder of the tokenizer that candidates are scored with.
        dtypes: source → dtype of its tensors, by torch's name.
        base: the base as a recipe.
        merge: a merge such as the search will try.
        model: bytes of a resident model's weights.
        layers: layers of a candidate, on average.
        deepest: layers of the deepest candidate.
        real: whether the models' weights are here.
        parents: name → recipe, the base among them.
    """

    spec: WorkerSpec
    folder: Path
    tokenizer: Path
    dtypes: Mapping[str, str]
    base: Recipe
    merge: Recipe
    model: int
    layers: float
    deepest: int
    real: bool
    parents: Mapping[str, Recipe] = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """Memory and seconds that one candidate takes.

    Attributes:
        libraries: bytes of its own that a worker takes before there is a model.
        merging: bytes beside the model.
        statistics: bytes of what the sources alone decide.
        scoring: bytes of scoring, in the deepest candidate; 0 where the model is elsewhere.
        merge: seconds of merging a recipe.
        once: seconds of what the sources alone decide.
        score: seconds of scoring an item; NaN where they are not known.
        asked: number of items that `score` rests on.
        real: whether it was measured, not estimated.
        failed: why the merge could not be measured, so that the base stands for it.
        cut: parent → task → how many of its answers were cut off at the token limit, of how many.
    """

    libraries: int
    merging: int
    statistics: int
    scoring: int
    merge: float
    once: float
    score: float
    asked: int
    real: bool
    failed: str | None = None
    cut: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeFailed:
    """Says why there is no `Probe`.

    Attributes:
        reason: for the user.
        fatal: whether it is also why no candidate will ever be scored.
    """

    reason: str
    fatal: bool


def probe(asked: ProbeSpec) -> Probe | ProbeFailed:
    """Try one candidate in a new process; a small one here, where all libraries are loaded.

    Raises:
        InputError: tasks or models cannot be used.
    """
    if _is_harmless(asked):
        return probe_here(asked)
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned) as pool:
        try:
            return pool.submit(probe_here, asked).result()
        except BrokenProcessPool:
            return ProbeFailed(
                "a worker was killed while it tried one candidate, most likely for want of memory; "
                "lower fitness.engine.batch_tokens or fitness.batch_size, or take a larger machine",
                fatal=True,
            )


def _is_harmless(asked: ProbeSpec) -> bool:
    """Tell whether nothing can take this process down: a small model, and code of ours alone."""
    config = asked.spec.config
    fitness = config.fitness
    own = any(isinstance(task, CallableConfig) for task in fitness.tasks)
    ours = not own and not config.models.trust_remote_code
    here = scores_here(config) and device_of(config) == "cpu"
    return asked.real and ours and here and asked.model <= _SMALL


def probe_here(asked: ProbeSpec) -> Probe | ProbeFailed:
    """Try one candidate in this process; see `probe`."""
    try:
        return _probe(asked)
    except EvomergeError:
        raise
    # The code of a model, a method or a task may fail in any way.
    except Exception as error:
        return ProbeFailed(
            f"one candidate could not be tried ({type(error).__name__}: {reason(error)})",
            fatal=False,
        )


def _probe(asked: ProbeSpec) -> Probe | ProbeFailed:
    import torch

    from evomerge.fitness.tasks.task_set import list_items
    from evomerge.models.checkpoint import load_config
    from evomerge.preflight.estimate_scoring import ScoringEstimate
    from evomerge.preflight.machine import Rates, usage

    torch.set_num_threads(asked.spec.threads)
    config, items = asked.spec.config, asked.spec.items["search"]
    device, trusted = device_of(config), config.models.trust_remote_code
    compute: torch.dtype = getattr(torch, compute_dtype(config))
    model = load_config(asked.folder, trusted).get_text_config(decoder=True)
    # 1. A worker's libraries and requests, with what a first product sets up.
    torch.ones(64, 64, device=device, dtype=compute) @ torch.ones(64, 64, device=device).to(compute)
    scoring: ScoringEstimate | None = None
    if scores_here(config):
        scoring = ScoringEstimate(config.fitness, asked.tokenizer, model, items, trusted)
    else:
        list_items(config.fitness)  # a worker holds the requests all the same
    libraries = usage().own
    # 2. Memory of scoring, by the largest batch.
    nbytes = scoring.bytes(asked.deepest, compute.itemsize) if scoring else 0
    # 3. Seconds, and memory of merging.
    if asked.real:
        return _measured(asked, libraries, nbytes)
    count, score = sum(map(len, items.values())), math.nan
    if scoring:
        matrix = scoring.shape.hidden, scoring.shape.mlp
        rates = Rates(device, compute, matrix)
        score = scoring.seconds(asked.layers, rates, compute.itemsize) / count
    merging = _estimated_merging(asked, model, compute)
    return Probe(
        libraries=libraries,
        merging=int(merging.bytes),
        statistics=int(merging.statistics),
        scoring=nbytes,
        merge=merging.seconds,
        once=merging.once,
        score=score,
        asked=count,
        real=False,
    )


def _estimated_merging(asked: ProbeSpec, model: Any, compute: Any) -> MergeCost:
    import torch

    from evomerge.materialize.kernel import Kernel
    from evomerge.models.layout import derive_layout
    from evomerge.preflight.estimate_merging import estimate_merging

    config = asked.spec.config
    return estimate_merging(
        asked.merge,
        derive_layout(model, trust_remote_code=config.models.trust_remote_code),
        {name: getattr(torch, dtype) for name, dtype in asked.dtypes.items()},
        Kernel({}, config.dtype.weights, config.chunk_mib << 20),
        compute,
        device_of(config),
    )


def _measured(asked: ProbeSpec, libraries: int, scoring: int) -> Probe | ProbeFailed:
    """Try the base, a merge, and both again: the first merge alone computes the statistics."""
    from evomerge.preflight.machine import MemoryMeter

    worker = Worker(replace(asked.spec, statistics=None))
    parts = list(_parts(asked.spec.items["search"]))
    meter, failed = MemoryMeter(device_of(asked.spec.config)), None
    seconds: dict[str, list[float]] = {"base": [], "merge": []}
    for name, recipe in (("base", asked.base), ("merge", asked.merge)) * 2:
        try:
            taken = worker.measure(recipe, "search", parts[0]).seconds["materialize"]
            seconds[name].append(taken)
        except CandidateError as error:
            if name == "base":
                return ProbeFailed(f"the base model itself cannot be scored: {error}", fatal=True)
            failed = str(error)
    most = meter.most()
    score, count = _scored(worker, asked.base if failed else asked.merge, parts)
    first, again = seconds["base" if failed else "merge"]
    return Probe(
        libraries=libraries,
        merging=max(0, most - asked.model),
        statistics=0,
        scoring=scoring,
        merge=again,
        once=max(0.0, first - again),
        score=score,
        asked=count,
        real=True,
        failed=failed,
        cut=dict(_cut_off(worker, asked.parents, parts)),
    )


def _scored(
    worker: Worker, recipe: Recipe, parts: Sequence[Mapping[str, Sequence[str]]]
) -> tuple[float, int]:
    """Seconds an item, and the number of items scored: as many as take long enough."""
    for part in parts:
        found: Measurement = worker.measure(recipe, "search", part)
        count = sum(map(len, part.values()))
        if found.seconds["score"] > _ENOUGH:
            break
    return found.seconds["score"] / count, count


def _cut_off(
    worker: Worker, parents: Mapping[str, Recipe], parts: Sequence[Mapping[str, Sequence[str]]]
) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Count the answers of every parent that the token limit ended, on few items of each task.

    Of tasks that generate; as many items as take little time, the same for all but slow parents.
    """
    for name, recipe in parents.items():
        found: dict[str, tuple[int, int]] = {}
        with suppress(CandidateError):
            for part in parts[:_LOOKED_AT]:
                seen = worker.measure(recipe, "search", part, counted=True)
                known = {t: f.cut[np.isfinite(f.cut)] for t, f in seen.answers.items()}
                found = {t: (int(cut.sum()), len(cut)) for t, cut in known.items() if len(cut)}
                if not found or seen.seconds["score"] > _ENOUGH / len(parents):
                    break
        if not found:  # nothing generates, or the parent cannot answer
            return
        yield name, found


def _parts(items: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, Sequence[str]]]:
    """More and more of every task's items, up to all; their order is one of chance."""
    most, count = max(map(len, items.values())), _FIRST
    while True:
        yield {task: ids[:count] for task, ids in items.items()}
        if count >= most:
            return
        count *= _GROWTH
