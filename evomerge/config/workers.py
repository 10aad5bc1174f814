"""`workers`: the processes that evaluate candidates."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from evomerge.config.base import Strict


class WorkersConfig(Strict):
    """`local` with one worker runs in a process beside the driver; everything else on Ray.

    Ray is started on this machine, or, with `address`, found: `auto` is the cluster that this
    machine is part of, anything else its head's `HOST` or `HOST:PORT`. Workers come as nodes do, up
    to `count`; `auto` is as many as the cluster has room for.
    """

    kind: Literal["local", "ray"] = "local"
    """`local`: one worker, in a process beside the driver; `ray`: actors, on one machine or a
    cluster.

    Example: `kind: ray, count: 4`
    """
    count: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """The number of workers; `auto` is as many as the cluster has room for. One for each GPU is
    a fair start.

    Example: `kind: ray, count: 4`
    """
    device: Literal["auto", "cpu", "cuda", "xpu", "mps"] = "auto"
    """The kind of device that candidates are merged and scored on, by torch's name: `cuda` (NVIDIA,
    and AMD under ROCm), `xpu` (Intel), `mps` (Apple) or `cpu`; `auto`: `cuda` or `xpu`, whichever
    torch can use here (on Ray with `gpus_per_worker` only), else `cpu`. Apple's is never taken
    unasked.

    Example: `device: cpu`
    """
    cpus_per_worker: int | None = Field(default=None, ge=1)
    """CPU cores of each worker.

    Example: `kind: ray, count: auto, cpus_per_worker: 4`
    """
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs of each worker; a share, such as 0.5, puts two on one GPU.

    Example: `kind: ray, count: 2, gpus_per_worker: 1`
    """
    address: str | None = None
    """The Ray cluster: `auto`, or its head's `HOST` or `HOST:PORT`; without it Ray is started
    on this machine.

    Example: `kind: ray, address: auto`
    """
    model_parallel: bool | None = None
    """Spread a model over the GPUs of its worker; by default if the worker has several.

    Example: `kind: ray, gpus_per_worker: 2, model_parallel: true`
    """
    timeout: Annotated[float, Field(gt=0)] | Literal["auto"] | None = "auto"
    """Seconds after which an evaluation counts as hung; `auto`: derived from what others took.

    Example: `timeout: 1800`
    """
    isolated: bool = True
    """Give a local worker a process of its own, so that a crash, a hang or a leak of memory costs
    one evaluation; false: it works in the driver's process, where a debugger sees it, and where
    plug-ins are known that only the calling script has registered.

    Example: `isolated: false`
    """
    memory: Annotated[float, Field(gt=0)] | Literal["auto"] | None = "auto"
    """The GB that an isolated worker may take, mapped models not counted, before a new process
    takes its place; `auto`: twice what it took after its first evaluation, at least 2 GB more.

    Example: `memory: 16`
    """
    copy_to: str | None = None
    """A folder on each node to which models and tasks are copied once; without it every node
    must see them where they are.

    Example: `kind: ray, copy_to: /scratch/evomerge`
    """

    @property
    def on_ray(self) -> bool:
        """True where workers are Ray actors rather than a process here, or the driver itself."""
        return self.kind == "ray" or self.count != 1

    @property
    def spreads(self) -> bool:
        """True where a model is spread over several GPUs."""
        return self.gpus_per_worker > 1

    @model_validator(mode="after")
    def _ray_has_these(self) -> WorkersConfig:
        defaults = type(self).model_fields
        for key in ("gpus_per_worker", "address", "model_parallel", "copy_to"):
            if not self.on_ray and getattr(self, key) != defaults[key].default:
                raise ValueError(f"{key} needs kind: ray")
        for key in ("timeout", "memory"):
            alone = not self.on_ray and not self.isolated
            if alone and getattr(self, key) != defaults[key].default:
                raise ValueError(f"{key} needs isolated: true")
        if self.on_ray and self.memory != "auto":
            raise ValueError("memory needs kind: local and count: 1; Ray has its own limit")
        if self.count == "auto" and self.kind == "local":
            raise ValueError("count: auto needs kind: ray")
        if self.count == "auto" and not (self.cpus_per_worker or self.gpus_per_worker):
            raise ValueError("count: auto needs cpus_per_worker or gpus_per_worker")
        return self

    @model_validator(mode="after")
    def _device_is_given(self) -> WorkersConfig:
        if self.device == "cpu" and self.gpus_per_worker:
            raise ValueError("device: cpu uses no GPU; leave gpus_per_worker out")
        if self.on_ray and self.device not in ("auto", "cpu") and not self.gpus_per_worker:
            raise ValueError(f"device: {self.device} on Ray needs gpus_per_worker")
        return self

    @model_validator(mode="after")
    def _gpus_are_used(self) -> WorkersConfig:
        gpus = self.gpus_per_worker
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_worker: {gpus:g}: above 1 write a whole number")
        if gpus > 1 and self.model_parallel is False:
            raise ValueError(f"gpus_per_worker: {gpus:g}: without model_parallel one is used")
        if self.model_parallel and gpus < 2:
            raise ValueError("model_parallel: true needs gpus_per_worker: 2 or more")
        return self

    @field_validator("copy_to")
    @classmethod
    def _is_a_place_on_any_node(cls, copy_to: str | None) -> str | None:
        if copy_to is not None and not PurePath(copy_to).is_absolute():
            raise ValueError("write an absolute path; it is taken on every node")
        return copy_to
