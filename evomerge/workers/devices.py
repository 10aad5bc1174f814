"""The device, dtype and threads of workers, and the plan of a GPU's memory for one of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import psutil

from evomerge.common.errors import InputError
from evomerge.config import CampaignConfig

if TYPE_CHECKING:
    from evomerge.materialize.memory.gpu_memory import GpuMemoryPlan
    from evomerge.models.checkpoint import Checkpoint


def device_of(config: CampaignConfig) -> str:
    """Return the kind of device that workers compute on: `workers.device`, or what `auto` is.

    On Ray that is `cpu` unless workers are given GPUs. Their kind is this machine's, or `cuda`
    where it has none: a cluster's head may have no GPU.
    """
    workers = config.workers
    if workers.device != "auto":
        return workers.device
    if workers.on_ray and not workers.gpus_per_worker:
        return "cpu"
    if workers.on_ray:
        from evomerge.common.accelerator import available

        return available() or "cuda"
    return own_device()


def own_device() -> str:
    """Return what `auto` is in this process: its GPU's kind, or `cpu`."""
    from evomerge.common.accelerator import ON_REQUEST, available

    here = available()
    return "cpu" if here is None or here in ON_REQUEST else here


def check_device(config: CampaignConfig) -> None:
    """Refuse a device that this process has not.

    Raises:
        InputError: workers are to compute on a kind of device that torch cannot use here.
    """
    from evomerge.common.accelerator import available

    wanted, here = device_of(config), available()
    if wanted not in ("cpu", here):
        raise InputError(
            f"workers.device: {wanted} is asked for, and torch can use "
            f"{'a CPU alone' if here is None else here} here; leave it out, or install torch for "
            f"{wanted} (`evomerge doctor` says what there is)"
        )


def compute_dtype(config: CampaignConfig) -> str:
    """Return torch's name of the dtype of scoring: `auto` is float32 on CPU, bfloat16 on GPUs."""
    if config.dtype.compute != "auto":
        return config.dtype.compute
    return "float32" if device_of(config) == "cpu" else "bfloat16"


def threads_per_worker(config: CampaignConfig) -> int:
    """Return `workers.cpus_per_worker`, by default this machine's cores shared among the workers.

    `OMP_NUM_THREADS`, where it is set to a number, says how many cores these are. On a cluster,
    whose nodes may have more, `workers.ray.nodes.threads_on` decides instead.
    """
    workers = config.workers
    count = 1 if workers.count == "auto" else workers.count
    return workers.cpus_per_worker or max(1, cores() // count)


def cores() -> int:
    """Count the cores that this process may use: `OMP_NUM_THREADS`, where it is a number."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_memory_plan(
    config: CampaignConfig, sources: Mapping[str, Checkpoint], threads: int
) -> GpuMemoryPlan | None:
    """Plan the GPU's memory as a worker of so many threads would that starts now.

    None on a CPU, and where a worker has several GPUs: sources are then copied to them for every
    candidate. Where several workers share a GPU each has its part.
    """
    import torch

    from evomerge.common.accelerator import Accelerator

    workers, device = config.workers, device_of(config)
    if device == "cpu" or workers.spreads:
        return None
    from evomerge.materialize.memory.gpu_memory import GpuMemoryPlan, needs_of
    from evomerge.methods import find_method

    layout = next(iter(sources.values())).layout
    compute = getattr(torch, compute_dtype(config))
    weights = config.space.weights
    named = [] if weights is None else weights.method
    methods = [find_method(m, "space") for m in ([named] if isinstance(named, str) else named)]
    needs = needs_of(sources, layout, compute, config.fitness.batch_size, methods)
    free, total = Accelerator(torch.device(device)).memory()
    if workers.on_ray:
        free = min(free, int(total * min(workers.gpus_per_worker, 1)))
    most = max(1, (os.cpu_count() or 1) // threads)
    count = most if workers.count == "auto" else workers.count
    # workers on one machine may pin half of the host's memory among them
    return GpuMemoryPlan(needs, free, psutil.virtual_memory().available // 2 // count)


def sources_line(config: CampaignConfig, sources: Mapping[str, Checkpoint]) -> str:
    """Say where workers will keep the sources, in one line for `evomerge check`."""
    from evomerge.common.accelerator import available

    if device_of(config) == "cpu":
        return "mapped from their files, on the CPU"
    if config.workers.spreads:
        return "copied from their files to the GPUs of a worker, for every candidate"
    if config.workers.address or available() is None:
        return "on the workers' GPUs if there is room, else streamed"
    return str(gpu_memory_plan(config, sources, threads_per_worker(config)))
