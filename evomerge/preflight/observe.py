"""What one worker takes, observed in a process of its own that may be killed for it.

Where the models are here, candidates are merged and scored as a worker does it; where only their
configs are, both are rehearsed (`evomerge.preflight.scoring`, `evomerge.preflight.merging`). The
memory that scoring takes is always rehearsed, on the longest items, which a candidate may meet
late; if the model that answers is elsewhere, it takes none here, and its seconds are not rehearsed.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.common.errors import CandidateError, EvomergeError
from evomerge.fitness.engines import scores_here
from evomerge.models.messages import reason
from evomerge.preflight.lines import Line
from evomerge.recipe import Recipe
from evomerge.workers.devices import compute_dtype, device_of
from evomerge.workers.worker import Measurement, Worker, WorkerSpec

if TYPE_CHECKING:
    from evomerge.preflight.scoring import Rehearsal

_ENOUGH = 20.0
"""Seconds of scoring that tell what all items take."""
_FIRST, _GROWTH = 2, 4
"""Items of each task that are scored first, and by how much more when that was quick."""


@dataclass(frozen=True)
class ProbeSpec:
    """What to observe; small, and picklable.

    Attributes:
        spec: of the campaign's workers.
        folder: of the base.
        dtypes: source → dtype of its tensors, by torch's name.
        base, merge: the base as a recipe, and a merge such as the search will try.
        model: bytes of a resident model's weights.
        real: with the models' own weights.
    """

    spec: WorkerSpec
    folder: Path
    dtypes: Mapping[str, str]
    base: Recipe
    merge: Recipe
    model: int
    real: bool


@dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
        libraries: bytes of its own that a worker takes before there is a model.
        merging: bytes beside the model, and of statistics.
        scoring: bytes, by the model's layers; 0 where the model is elsewhere.
        merge: seconds of a recipe, and `once` those of what the sources alone decide.
        score: seconds of an item, by the model's layers; NaN where they are not known.
        asked: how many items that rests on.
        real: measured, not rehearsed.
        failed: why the merge could not be measured, so that the base stands for it.
    """

    libraries: int
    merging: int
    statistics: int
    scoring: Line
    merge: float
    once: float
    score: Line
    asked: int
    real: bool
    failed: str | None = None


@dataclass(frozen=True)
class ProbeFailed:
    """Why nothing was found; `fatal`: and why no candidate ever will be scored."""

    reason: str
    fatal: bool


def observe(order: ProbeSpec) -> Probe | ProbeFailed:
    """Observe in a new process.

    Raises:
        InputError: tasks or models cannot be used.
    """
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned) as pool:
        try:
            return pool.submit(observed, order).result()
        except BrokenProcessPool:
            return ProbeFailed(
                "a worker was killed while it tried one candidate, most likely for want of memory; "
                "lower fitness.engine.batch_tokens or fitness.batch_size, or take a larger machine",
                fatal=True,
            )


def observed(order: ProbeSpec) -> Probe | ProbeFailed:
    """Observe in this process."""
    try:
        return _observed(order)
    except EvomergeError:
        raise
    # A model's code may ask more of its tensors than a rehearsal gives them.
    except Exception as error:
        return ProbeFailed(
            f"one candidate could not be tried ({type(error).__name__}: {reason(error)})",
            fatal=False,
        )


def _observed(order: ProbeSpec) -> Probe | ProbeFailed:
    import torch

    from evomerge.fitness.tasks.task_set import list_items
    from evomerge.preflight.machine import usage
    from evomerge.preflight.products import Products

    torch.set_num_threads(order.spec.threads)
    config, items = order.spec.config, order.spec.items["search"]
    rehearsal = _rehearsal(order) if scores_here(config) else None
    if rehearsal is None:
        list_items(config.fitness)  # a worker holds the requests all the same
    libraries = usage().own
    scoring = rehearsal.bytes(items) if rehearsal else Line(0.0, 0.0)
    if order.real:
        return _measured(order, libraries, scoring)
    score, asked = Line(math.nan, 0.0), 0
    if rehearsal:
        score, asked = rehearsal.seconds(items, Products(device_of(config)))
    merging = _rehearsed_merging(order)
    return Probe(
        libraries=libraries,
        merging=merging.bytes,
        statistics=merging.statistics,
        scoring=scoring,
        merge=merging.seconds,
        once=merging.once,
        score=score,
        asked=asked,
        real=False,
    )


def _rehearsal(order: ProbeSpec) -> Rehearsal:
    import torch

    from evomerge.preflight.scoring import DEPTH, Rehearsal
    from evomerge.preflight.stand_in import Shallow, tokenizer_for

    config, trusted = order.spec.config, order.spec.config.models.trust_remote_code
    model = _config_of(order)
    shallow = Shallow(
        model,
        min(DEPTH, model.num_hidden_layers),
        getattr(torch, compute_dtype(config)),
        device_of(config),
        trusted,
    )
    vocabulary = shallow.model.get_input_embeddings().weight.shape[0]
    tokenizer = tokenizer_for(order.folder, vocabulary, config.fitness, trusted)
    return Rehearsal(config.fitness, shallow, tokenizer)


def _rehearsed_merging(order: ProbeSpec) -> Any:
    import torch

    from evomerge.materialize.kernel import Kernel
    from evomerge.models.layout import derive_layout
    from evomerge.preflight.merging import rehearse_merging

    config, trusted = order.spec.config, order.spec.config.models.trust_remote_code
    kernel = Kernel({}, config.dtype.weights, config.chunk_mib << 20)
    return rehearse_merging(
        order.merge,
        derive_layout(_config_of(order), trust_remote_code=trusted),
        {name: getattr(torch, dtype) for name, dtype in order.dtypes.items()},
        kernel,
        getattr(torch, compute_dtype(config)),
        device_of(config),
    )


def _config_of(order: ProbeSpec) -> Any:
    from evomerge.models.checkpoint import load_config

    trusted = order.spec.config.models.trust_remote_code
    return load_config(order.folder, trusted).get_text_config(decoder=True)


def _measured(order: ProbeSpec, libraries: int, scoring: Line) -> Probe | ProbeFailed:
    """The base, a merge, and both again: only the first merge computes what the sources decide."""
    from evomerge.preflight.machine import Meter

    worker = Worker(replace(order.spec, statistics=None))
    parts = list(_parts(order.spec.items["search"]))
    meter, failed = Meter(device_of(order.spec.config)), None
    seconds: dict[str, list[float]] = {"base": [], "merge": []}
    for name, recipe in (("base", order.base), ("merge", order.merge)) * 2:
        try:
            taken = worker.measure(recipe, "search", parts[0]).seconds["materialize"]
            seconds[name].append(taken)
        except CandidateError as error:
            if name == "base":
                return ProbeFailed(f"the base model itself cannot be scored: {error}", fatal=True)
            failed = str(error)
    taken = meter.most()
    score, asked = _scored(worker, order.base if failed else order.merge, parts)
    first, again = seconds["base" if failed else "merge"]
    return Probe(
        libraries=libraries,
        merging=max(0, taken - order.model),
        statistics=0,
        scoring=scoring,
        merge=again,
        once=max(0.0, first - again),
        score=Line(score, 0.0),
        asked=asked,
        real=True,
        failed=failed,
    )


def _scored(
    worker: Worker, recipe: Recipe, parts: Sequence[Mapping[str, Sequence[str]]]
) -> tuple[float, int]:
    """Seconds an item, of as many items as take long enough."""
    for part in parts:
        found: Measurement = worker.measure(recipe, "search", part)
        asked = sum(map(len, part.values()))
        if found.seconds["score"] > _ENOUGH:
            break
    return found.seconds["score"] / asked, asked


def _parts(items: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, Sequence[str]]]:
    """More and more of every task's items, up to all; their order is one of chance."""
    most, count = max(map(len, items.values())), _FIRST
    while True:
        yield {task: ids[:count] for task, ids in items.items()}
        if count >= most:
            return
        count *= _GROWTH
