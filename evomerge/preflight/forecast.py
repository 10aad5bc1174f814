"""Forecast what a campaign takes: memory, seconds, hours and disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from evomerge.campaign.setup import Setup
from evomerge.fitness.engines import scores_here
from evomerge.materialize.disk.checkpoint import checkpoint_size
from evomerge.materialize.disk.recipe_models import with_recipes_made
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.statistics.statistics import Statistics
from evomerge.materialize.statistics.store import RESERVE
from evomerge.models.open_models import alignments_of
from evomerge.preflight.machine import free_disk, this_machine
from evomerge.preflight.probe import Probe, ProbeFailed, ProbeSpec, probe
from evomerge.preflight.work import Depths, Part, Work, depths_of, work_of
from evomerge.recipe import BASE
from evomerge.workers.devices import compute_dtype, device_of, threads_per_worker
from evomerge.workers.worker import WorkerSpec


@dataclass(frozen=True)
class Memory:
    """Memory of one worker in bytes, by what takes it; parts that are not known are 0.

    Merging and scoring take turns, the one in the room that the other leaves.

    Attributes:
        device: the device of model, merging, statistics and scoring; libraries are in the host's.
        libraries: code, requests, and what a first product sets up.
        model: weights of the resident model.
        merging: beside the model.
        statistics: of what the sources alone decide.
        scoring: activations, logits and KV cache.
        mapped: the models' files, which all workers of a machine share, and which the system reads
            again where it has no room for them.
    """

    device: str
    libraries: int
    model: int
    merging: int
    statistics: int
    scoring: int
    mapped: int

    @property
    def own(self) -> int:
        """Bytes that every worker takes of the device's memory for itself."""
        host = self.libraries if self.device == "cpu" else 0
        return host + self.model + self.statistics + max(self.merging, self.scoring)


@dataclass(frozen=True)
class Forecast:
    """Holds what `evomerge check` says beside the setup.

    Attributes:
        memory: memory of a worker.
        free: bytes of the device's memory that workers can have here.
        fit: how many workers find room in it.
        workers: how many there are to be.
        found: what one candidate takes, or why that is not known; None where none was tried.
        work: work of the whole budget, at most.
        export: bytes of an exported checkpoint.
        disk: bytes that are free in the current folder.
    """

    memory: Memory
    free: int
    fit: int
    workers: int
    found: Probe | ProbeFailed | None
    work: Work
    export: int
    disk: int

    @property
    def probe(self) -> Probe | None:
        """The probe of one candidate, where there is one."""
        return self.found if isinstance(self.found, Probe) else None

    @property
    def item_seconds(self) -> float:
        """Seconds of scoring one item; NaN where they are not known."""
        return self.probe.score if self.probe else math.nan

    def hours(self, part: Part) -> float:
        """Hours of so much work, with what comes once; NaN where they are not known."""
        if self.probe is None:
            return math.nan
        seconds = part.merges * self.probe.merge + part.items * self.item_seconds
        return (self.probe.once + seconds / self.workers) / 3600


def foresee(
    setup: Setup,
    run: Path,
    trials: int,
    try_one: Callable[[ProbeSpec], Probe | ProbeFailed] | None = probe,
) -> Forecast:
    """Try one candidate and say what follows for the campaign.

    Args:
        run: the run's folder.
        trials: trials of all stages.
        try_one: how a candidate is tried; None to try none.

    Raises:
        InputError: tasks or models cannot be used.
    """
    config, machine = setup.config, this_machine()
    device, depths = device_of(config), depths_of(setup)
    model = _model_bytes(setup, depths)
    found: Probe | ProbeFailed | None = None
    if try_one and device != "cpu" and not machine.gpus:
        lacking = f"workers compute on {device}, which this machine has not"
        found = ProbeFailed(lacking, fatal=False)
    elif try_one:
        found = try_one(_probe_spec(setup, model, depths))
    memory = _memory(setup, device, model, found if isinstance(found, Probe) else None, run)
    rooms = [machine.memory] if device == "cpu" else list(machine.gpus)
    fit, count = sum(room // max(1, memory.own) for room in rooms), config.workers.count
    return Forecast(
        memory=memory,
        free=sum(rooms),
        fit=fit,
        workers=max(1, fit) if count == "auto" else count,
        found=found,
        work=work_of(setup, trials),
        export=checkpoint_size(
            setup.space.decode(setup.space.initial),
            setup.models.layout,
            Kernel(setup.models.sources, config.dtype.weights),
        ),
        disk=free_disk(Path.cwd()),
    )


def _probe_spec(setup: Setup, model: int, depths: Depths) -> ProbeSpec:
    config, sources = setup.config, setup.models.sources
    real = not setup.models.configs_only
    made = with_recipes_made(config.models) if real else config.models
    spec = WorkerSpec(
        config=config.model_copy(update={"models": made}),
        items=setup.items,
        threads=threads_per_worker(config),
        alignments=alignments_of(sources),
        teachers=setup.teachers,
    )
    dtypes = {n: str(s.dtype(setup.models.layout.names[0])) for n, s in sources.items()}
    return ProbeSpec(
        spec=spec,
        folder=sources[BASE].folder,
        tokenizer=sources[BASE].tokenizer_folder,
        dtypes={name: dtype.removeprefix("torch.") for name, dtype in dtypes.items()},
        base=setup.space.parents()[BASE],
        merge=setup.space.decode(setup.space.initial),
        model=model,
        layers=depths.mean,
        deepest=depths.deepest,
        real=real,
        parents=setup.space.parents(),
    )


def _model_bytes(setup: Setup, depths: Depths) -> int:
    """Bytes of a resident model that has held every path; 0 if candidates are loaded elsewhere."""
    if not scores_here(setup.config):
        return 0
    size = getattr(torch, compute_dtype(setup.config)).itemsize
    return sum(
        math.prod(t.shape) * size * (1 if t.layer is None else depths.held[t.layer])
        for t in setup.models.layout.tensors
    )


def _memory(setup: Setup, device: str, model: int, found: Probe | None, run: Path) -> Memory:
    statistics = found.statistics if found else 0
    kept = device == "cpu" and statistics + RESERVE < free_disk(run)  # then they are mapped
    return Memory(
        device=device,
        libraries=found.libraries if found else 0,
        model=model,
        merging=found.merging if found else 0,
        statistics=0 if kept else min(statistics, Statistics().limit),
        scoring=found.scoring if found else 0,
        mapped=_mapped(setup) + (statistics if kept else 0),
    )


def _mapped(setup: Setup) -> int:
    """Bytes of the models that have files of their own; an adapter's are small."""
    sources = setup.models.sources
    whole = [s for n, s in sources.items() if n == BASE or s.folder != sources[BASE].folder]
    return sum(math.prod(s.shape(n)) * s.dtype(n).itemsize for s in whole for n in s.names())
