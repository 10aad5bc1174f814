"""What workers compute with: device, dtype, threads, and on a GPU the place of the sources."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from evomerge.config import CampaignConfig

if TYPE_CHECKING:
    from evomerge.materialize.feed import Feed
    from evomerge.materialize.memory.source_placement import Needs
    from evomerge.models.checkpoint import Checkpoint


def device_of(config: CampaignConfig) -> str:
    """Where workers compute: on CUDA if there is one, on Ray only if they are given GPUs."""
    import torch

    workers = config.workers
    uses_gpu = workers.gpus_per_worker > 0 if workers.on_ray else torch.cuda.is_available()
    return "cuda" if uses_gpu else "cpu"


def compute_dtype(config: CampaignConfig) -> str:
    """The dtype of scoring, by torch's name: `auto` is float32 on CPU and bfloat16 on CUDA."""
    if config.dtype.compute != "auto":
        return config.dtype.compute
    return "float32" if device_of(config) == "cpu" else "bfloat16"


def threads_per_worker(config: CampaignConfig) -> int:
    """`workers.cpus_per_worker`, by default this machine's cores shared among the workers.

    `OMP_NUM_THREADS`, where it is set to a number, says how many cores these are. Of a cluster,
    whose nodes may have more, `workers.nodes.threads_on` says it.
    """
    workers = config.workers
    count = 1 if workers.count == "auto" else workers.count
    return workers.cpus_per_worker or max(1, _cores() // count)


def _cores() -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class SourcePlace:
    """Where a worker on a GPU keeps the sources.

    Attributes:
        free: bytes that it has of its GPU.
        room: bytes of the host's memory that it may pin.
    """

    needs: Needs
    free: int
    room: int

    def feed(self, sources: Mapping[str, Checkpoint]) -> Feed:
        """What brings the sources to the GPU, or has them there."""
        from evomerge.materialize.feed import CudaLane
        from evomerge.materialize.memory.source_placement import feed_of, residence

        return feed_of(residence(self.needs, self.free), sources, CudaLane("cuda"), self.room)

    @property
    def statistics(self) -> int:
        """Bytes that statistics may take of the GPU."""
        from evomerge.materialize.memory.source_placement import statistics_limit

        return statistics_limit(self.free)

    def __str__(self) -> str:
        """One line for `evomerge check`."""
        from evomerge.materialize.memory.source_placement import residence

        chosen = residence(self.needs, self.free)
        if chosen == "held":
            return f"on the GPU: {_gb(self.needs.all)} of {_gb(self.free)} free"
        streamed = (
            f"streamed to the GPU from pinned memory: there they would need "
            f"{_gb(self.needs.all)}, and {_gb(self.free)} are free"
        )
        if chosen == "streamed":
            return streamed
        return (
            f"{streamed}; even without them one candidate and a batch of long requests would need "
            f"{_gb(self.needs.least)}: lower fitness.batch_size, or expect failures"
        )


def place(
    config: CampaignConfig, sources: Mapping[str, Checkpoint], threads: int
) -> SourcePlace | None:
    """What a worker of so many threads that starts now would choose.

    None on a CPU, and where a worker has several GPUs: sources are then copied to them for every
    candidate. Of a GPU that several workers share each has its part.
    """
    import torch

    workers = config.workers
    if device_of(config) == "cpu" or workers.spreads:
        return None
    from evomerge.materialize.memory.source_placement import needs_of, pinned_room

    layout = next(iter(sources.values())).layout
    compute = getattr(torch, compute_dtype(config))
    needs = needs_of(sources, layout, compute, config.fitness.batch_size)
    free, total = torch.cuda.mem_get_info()
    if workers.on_ray:
        free = min(free, int(total * min(workers.gpus_per_worker, 1)))
    most = max(1, (os.cpu_count() or 1) // threads)
    count = most if workers.count == "auto" else workers.count
    return SourcePlace(needs, free, pinned_room(psutil.virtual_memory().available, count))


def place_of_sources(config: CampaignConfig, sources: Mapping[str, Checkpoint]) -> str:
    """Where workers will keep the sources, for `evomerge check`."""
    import torch

    if device_of(config) == "cpu":
        return "mapped from their files, on the CPU"
    if config.workers.spreads:
        return "copied from their files to the GPUs of a worker, for every candidate"
    if config.workers.address or not torch.cuda.is_available():
        return "on the workers' GPUs if there is room, else streamed"
    return str(place(config, sources, threads_per_worker(config)))


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
