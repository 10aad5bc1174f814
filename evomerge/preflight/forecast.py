"""A campaign's forecast: memory, seconds, hours and disk."""

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
from evomerge.materialize.statistics.statistics import Statistics
from evomerge.materialize.statistics.store import RESERVE
from evomerge.models.open_models import alignments_of
from evomerge.preflight.depths import Depths, depths_of
from evomerge.preflight.machine import free_disk, this_machine
from evomerge.preflight.observe import Probe, ProbeFailed, ProbeSpec, observe
from evomerge.preflight.work import Part, Work, work_of
from evomerge.recipe import BASE
from evomerge.workers.devices import compute_dtype, device_of, threads_per_worker
from evomerge.workers.worker import WorkerSpec


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker, by what takes them; those not observed are 0.

    Merging and scoring take turns, the one in the room that the other leaves.

    Attributes:
        device: where model, merging, statistics and scoring are; libraries are in the host's.
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
        """What every worker takes of the device's memory for itself."""
        host = self.libraries if self.device == "cpu" else 0
        return host + self.model + self.statistics + max(self.merging, self.scoring)


@dataclass(frozen=True)
class Forecast:
    """What `evomerge check` says beside the setup.

    Attributes:
        memory: of a worker.
        free: bytes of the device's memory that workers can have here.
        fit: how many workers find room in it.
        workers: how many there are to be.
        found: what one candidate takes, or why that is not known; None where nobody looked.
        depth: layers of a candidate, on average.
        work: what the whole budget comes to, at most.
        export, disk: bytes of an exported checkpoint, and those free in the current folder.
    """

    memory: Memory
    free: int
    fit: int
    workers: int
    found: Probe | ProbeFailed | None
    depth: float
    work: Work
    export: int
    disk: int

    @property
    def observed(self) -> Probe | None:
        """What one candidate takes, where that is known."""
        return self.found if isinstance(self.found, Probe) else None

    @property
    def item_seconds(self) -> float:
        """Of scoring one item; NaN where it is not known."""
        return self.observed.score.at(self.depth) if self.observed else math.nan

    def hours(self, part: Part) -> float:
        """Of so much work, after what comes once; NaN where they are not known."""
        if self.observed is None:
            return math.nan
        seconds = part.merges * self.observed.merge + part.items * self.item_seconds
        return (self.observed.once + seconds / self.workers) / 3600


def foresee(
    setup: Setup,
    run: Path,
    trials: int,
    look: Callable[[ProbeSpec], Probe | ProbeFailed] | None = observe,
) -> Forecast:
    """Observe one candidate and say what follows.

    Args:
        run: the run's folder.
        trials: of all stages.
        look: how it is observed; None for not at all.

    Raises:
        InputError: tasks or models cannot be used.
    """
    config, machine = setup.config, this_machine()
    device, depths = device_of(config), depths_of(setup)
    model = _model_bytes(setup, depths)
    found: Probe | ProbeFailed | None = None
    if look and device == "cuda" and not machine.gpus:
        found = ProbeFailed("workers compute on CUDA, which this machine has not", fatal=False)
    elif look:
        found = look(_order(setup, model))
    observed = found if isinstance(found, Probe) else None
    memory = _memory(setup, device, model, observed, depths, run)
    rooms = [machine.memory] if device == "cpu" else list(machine.gpus)
    fit, count = sum(room // max(1, memory.own) for room in rooms), config.workers.count
    return Forecast(
        memory=memory,
        free=sum(rooms),
        fit=fit,
        workers=max(1, fit) if count == "auto" else count,
        found=found,
        depth=depths.mean,
        work=work_of(setup, trials),
        export=checkpoint_size(setup.space.decode(setup.space.initial), setup.models, config.dtype),
        disk=free_disk(Path.cwd()),
    )


def _order(setup: Setup, model: int) -> ProbeSpec:
    config, sources = setup.config, setup.models.sources
    real = not setup.models.configs_only
    made = with_recipes_made(config.models) if real else config.models
    spec = WorkerSpec(
        config=config.model_copy(update={"models": made}),
        items=setup.items,
        threads=threads_per_worker(config),
        alignments=alignments_of(sources),
    )
    dtypes = {n: str(s.dtype(setup.models.layout.names[0])) for n, s in sources.items()}
    return ProbeSpec(
        spec=spec,
        folder=sources[BASE].folder,
        dtypes={name: dtype.removeprefix("torch.") for name, dtype in dtypes.items()},
        base=setup.space.parents()[BASE],
        merge=setup.space.decode(setup.space.initial),
        model=model,
        real=real,
    )


def _model_bytes(setup: Setup, depths: Depths) -> int:
    """Of a resident model that has held every path; 0 if candidates are loaded elsewhere."""
    if not scores_here(setup.config):
        return 0
    size = getattr(torch, compute_dtype(setup.config)).itemsize
    return sum(
        math.prod(t.shape) * size * (1 if t.layer is None else depths.held[t.layer])
        for t in setup.models.layout.tensors
    )


def _memory(
    setup: Setup,
    device: str,
    model: int,
    observed: Probe | None,
    depths: Depths,
    run: Path,
) -> Memory:
    statistics = observed.statistics if observed else 0
    kept = device == "cpu" and statistics + RESERVE < free_disk(run)  # then they are mapped
    return Memory(
        device=device,
        libraries=observed.libraries if observed else 0,
        model=model,
        merging=observed.merging if observed else 0,
        statistics=0 if kept else min(statistics, Statistics().limit),
        scoring=int(observed.scoring.at(depths.deepest)) if observed else 0,
        mapped=_mapped(setup) + (statistics if kept else 0),
    )


def _mapped(setup: Setup) -> int:
    """Of the models that have files of their own; an adapter's are small."""
    sources = setup.models.sources
    whole = [s for n, s in sources.items() if n == BASE or s.folder != sources[BASE].folder]
    return sum(math.prod(s.shape(n)) * s.dtype(n).itemsize for s in whole for n in s.names())
