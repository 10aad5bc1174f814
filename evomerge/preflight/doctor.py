"""The facts of this machine and installation, and what is wrong with them, for bug reports."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from evomerge.common.version import __version__
from evomerge.preflight.machine import this_machine
from evomerge.preflight.problems import size_of

SHOWN = (
    *("torch", "transformers", "lm-eval", "optuna", "ray", "safetensors", "peft", "datasets"),
    *("huggingface-hub", "cmaes", "numpy", "pydantic", "sqlalchemy"),
)
"""Packages whose versions a bug report needs."""
SETTINGS = (
    *("HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "CUDA_VISIBLE_DEVICES"),
    *("OMP_NUM_THREADS", "RAY_ADDRESS", "PYTORCH_ALLOC_CONF"),
)
"""Variables of the environment that change what evomerge does; none holds a secret."""
FOR_CPUS = "torch for CPUs"
LEAST_DISK, LEAST_MEMORY, LEAST_SHARED = 20 * 10**9, 4 * 10**9, 2 * 10**9
"""Bytes below which a campaign soon fails: of a disk, of memory, of `/dev/shm`."""


@dataclass
class Findings:
    """Facts, one line each, and what is wrong.

    Attributes:
        facts: (name, text) in the order of display.
        wrong: what is wrong, each with its way out.
    """

    facts: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def examine() -> Findings:
    """Look at versions, devices, memory, disk and settings; loads torch, opens no model."""
    found = Findings()
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    found.facts.append(("evomerge", f"{__version__}, Python {platform.python_version()}, {system}"))
    found.facts.append(("packages", ", ".join(_versions())))
    found.wrong.extend(_wrong_versions())
    _devices(found)
    _memory(found)
    _disk(found)
    found.facts.append(("settings", _settings()))
    found.wrong.extend(_refused_plugins())
    return found


def _versions() -> Iterator[str]:
    for name in SHOWN:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} missing"


def _wrong_versions() -> Iterator[str]:
    """Compare what is installed with what evomerge asks for."""
    try:
        asked = importlib.metadata.requires("evomerge") or []
    except importlib.metadata.PackageNotFoundError:
        yield "evomerge is importable, but not installed; pip install it, for its dependencies"
        return
    for line in asked:
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{need.name} is missing; pip install '{need.name}{need.specifier}'"
            continue
        if not need.specifier.contains(version, prereleases=True):
            wanted = f"{need.name}{need.specifier}"
            yield f"{need.name} is {version}, asked for is {wanted}; pip install '{wanted}'"


def _devices(found: Findings) -> None:
    """Add CPU and GPUs, and whether torch can use what the driver shows."""
    from evomerge.common.accelerator import accelerators

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found.facts.append(("CPU", f"{cores} cores of {os.cpu_count()}"))
    driver = _driver()
    if importlib.util.find_spec("torch") is None:
        found.facts.append(("GPU", driver or "none"))
        return
    build, gpus = _build(), accelerators()
    for index, gpu in enumerate(gpus):
        free, total = gpu.memory()
        text = f"{index}: {gpu.name}, {size_of(free)} of {size_of(total)} free, {build}"
        found.facts.append(("GPU", text))
        if free < total / 2:
            found.wrong.append(
                f"GPU {index} is more than half full; end what else runs on it, or choose "
                "another by CUDA_VISIBLE_DEVICES"
            )
    if gpus:
        return
    found.facts.append(("GPU", f"none that torch can use ({build})"))
    if driver and build == FOR_CPUS:
        found.wrong.append(
            f"there is a GPU ({driver}), but torch is built for CPUs; install torch for CUDA: "
            "https://pytorch.org/get-started/locally"
        )
    elif driver:
        found.wrong.append(
            f"there is a GPU ({driver}), but {build} cannot use it; "
            "look at the driver's version, and at CUDA_VISIBLE_DEVICES"
        )


def _build() -> str:
    """Say which devices the installed torch is built for."""
    import torch

    made = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip, "Intel GPUs": torch.version.xpu}
    found = [f"{kind} {version}" for kind, version in made.items() if version]
    return f"torch for {' and '.join(found)}" if found else FOR_CPUS


def _driver() -> str:
    """The GPUs and the driver that nvidia-smi shows; empty without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.split("\n")).strip("; ") if done.returncode == 0 else ""


def _memory(found: Findings) -> None:
    total, free = psutil.virtual_memory().total, this_machine().memory
    found.facts.append(
        ("memory", f"{size_of(free)} free within all limits, {size_of(total)} in all")
    )
    if free < LEAST_MEMORY:
        found.wrong.append(
            f"less than {size_of(LEAST_MEMORY)} of memory is free; `evomerge check` says what a "
            "campaign needs"
        )


def _disk(found: Findings) -> None:
    """Add the free disk of the places that evomerge writes to."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    places = {
        "here (runs)": Path.cwd(),
        "hub's cache": home,
        "temporary": Path(tempfile.gettempdir()),
    }
    for name, place in places.items():
        there = next(p for p in (place, *place.parents) if p.exists())
        free = shutil.disk_usage(there).free
        found.facts.append(("disk", f"{name}: {size_of(free)} free in {there}"))
        if free < LEAST_DISK:
            found.wrong.append(
                f"less than {size_of(LEAST_DISK)} free in {there}; a checkpoint of 7 B takes 14 GB"
            )
        if not os.access(there, os.W_OK):
            found.wrong.append(f"{there} cannot be written")
    shared = Path("/dev/shm")
    if sys.platform == "linux" and shared.exists():
        size = shutil.disk_usage(shared).total
        if size < LEAST_SHARED:
            found.wrong.append(
                f"/dev/shm has {size_of(size)}, of which Ray wants more; start the container with "
                "--shm-size 8g"
            )


def _settings() -> str:
    given = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    return ", ".join(given) or "none"


def _refused_plugins() -> Iterator[str]:
    """Plug-ins of other packages that cannot be loaded."""
    from evomerge.explain import REGISTRIES

    for registry in REGISTRIES.values():
        registry.all()
        yield from registry.refused.values()
