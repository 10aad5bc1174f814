"""Digests of merged tensors, and the machine that made them, for records of earlier commits."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash tensors by name, dtype, shape and bytes, in the order of the names; SHA-256 in hex."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def machine() -> dict[str, str]:
    """Name the processor and the packages that weights and scores depend on."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": (models or [platform.processor()])[0],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **{name: version(name) for name in ("torch", "transformers", "lm_eval", "optuna")},
    }
