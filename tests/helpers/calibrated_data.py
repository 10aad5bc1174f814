"""Made-up calibration data: for tensors of a shape, and in files of opened models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from evomerge.models.checks.checked_models import CheckedModels
from evomerge.models.files.calibration_file import (
    CalibrationHead,
    open_calibration,
    write_calibration,
)
from evomerge.models.layout import Layout
from evomerge.recipe import BASE

SAMPLES = 5


def some_calibration(
    kinds: Sequence[str], shape: Sequence[int], experts: int, seed: int = 0, dtype=torch.float32
) -> dict[str, list[torch.Tensor]]:
    """Return kind → one tensor per expert; no Gram matrix of what is no matrix."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[torch.Tensor]] = {}
    for kind in kinds:
        if kind in ("gram", "cross") and len(shape) != 2:
            continue
        if kind == "cross":
            found[kind] = [one.to(dtype) for one in crossed(shape[-1], experts, generator)]
            continue
        found[kind] = [_one(kind, shape, generator).to(dtype) for _ in range(experts)]
    return found


def crossed(inputs: int, experts: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Return XᵢᵀX̄/T of each expert, for inputs that are not unlike each other."""
    common = torch.randn(3 * inputs + 4, inputs, generator=generator)
    own = [common + torch.randn(common.shape, generator=generator) for _ in range(experts)]
    mean = sum(own[1:], own[0]) / experts
    return [one.mT @ mean / len(mean) for one in own]


def _one(kind: str, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    if kind in ("gram", "cross"):  # as of experts that all have the same inputs
        inputs = torch.randn(3 * shape[-1] + 4, shape[-1], generator=generator)
        mixed = inputs @ torch.randn(shape[-1], shape[-1], generator=generator)
        return mixed.mT @ mixed / len(mixed)
    if kind == "gtheta":
        return torch.randn(SAMPLES, *shape, generator=generator)
    if kind == "mean_abs":
        return torch.rand(shape[-1], generator=generator)
    return torch.randn(shape, generator=generator).square() * 10.0 ** float(
        torch.randint(-2, 2, (1,), generator=generator)
    )


def calibrate(models: CheckedModels, folder: Path, seed: int = 0) -> dict[str, str]:
    """Write a made-up calibration file of every source, and let the opened models have them.

    Returns:
        Source → its file, as `models.statistics` has it.
    """
    found = {}
    together = [source.digest for name, source in models.sources.items() if name != BASE]
    for number, (name, source) in enumerate(models.sources.items()):
        path = folder / f"{name}.safetensors"
        head = CalibrationHead(source.digest, "0", SAMPLES, seed=seed, together=together)
        tensors = some_statistics(models.layout, seed + number)
        source.calibrate_with(open_calibration(write_calibration(path, head, tensors)))
        found[name] = str(path)
    return found


def some_statistics(layout: Layout, seed: int) -> dict[str, torch.Tensor]:
    """Return what a calibration file holds of every tensor of a layout."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for spec in layout.tensors:
        kinds = ["fisher", "gtheta"]
        if len(spec.shape) == 2 and spec.group not in ("embeddings", "head"):
            kinds += ["gram", "cross", "mean_abs"]
        for kind in kinds:
            shape = spec.shape[::-1] if spec.transposed and len(spec.shape) == 2 else spec.shape
            own = shape if kind in ("gram", "cross", "mean_abs") else spec.shape
            found[f"{kind}/{spec.name}"] = _one(kind, own, generator)
    sensitivities = torch.rand(len(layout.tensors), 1, generator=generator, dtype=torch.float64)
    named = zip(layout.tensors, sensitivities, strict=True)
    return found | {f"sens/{spec.name}": value for spec, value in named}
