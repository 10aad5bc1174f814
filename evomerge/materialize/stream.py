"""A recipe streamed to disk: one shard in memory at a time, each written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from evomerge.errors import InputError
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import TensorStep, check_contents, plan
from evomerge.materialize.scales import embedding_factor
from evomerge.models.layout import Layout
from evomerge.recipe import BASE, Recipe

SHARD_BYTES = 5 * 10**9


@torch.no_grad()
def write_weights(
    recipe: Recipe, layout: Layout, kernel: Kernel, folder: Path, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write the merged weights as safetensors, with an index when there are several shards.

    Tied tensors are written once, under the name of the one that is stored; experts of a mixture
    in the pieces in which transformers saves them. Layers are numbered by
    their slots. An input scale is folded into the embeddings where that is exact. Returns the files
    written.

    Raises:
        InputError: the recipe does not fit the models, was made from other weights, scales in a
            way that no checkpoint can say, or the disk has not the room.
        NonFiniteError: a merged tensor is not finite.
    """
    steps = plan(recipe, layout, kernel.sources)
    factor = embedding_factor(recipe, layout)
    check_contents(recipe, kernel.sources)
    shards = list(_shards(steps, kernel, shard_bytes))
    beside = kernel.sources[BASE].beside()
    total = sum(_size(step, kernel) for step in steps) + sum(t.nbytes for t in beside.values())
    _check_room(folder, total)
    names = _shard_names(len(shards) + bool(beside))
    weight_map: dict[str, str] = {}
    for name, shard in zip(names, [*shards, *([[]] if beside else [])], strict=True):
        tensors = {}
        for step in shard:
            out = torch.empty(step.tensor.shape, dtype=kernel.dtype(step.tensor.name))
            kernel.fill(out, step, recipe.seed)
            if step.slot is None and step.tensor.group == "embeddings" and factor != 1:
                out.mul_(factor)
            tensors[step.name] = out
        # What no merge changes has a shard of its own, the last.
        tensors = kernel.sources[BASE].as_saved(tensors) if shard else beside
        weight_map |= dict.fromkeys(tensors, name)
        partial = folder / f"{name}.partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        os.replace(partial, folder / name)
    if len(names) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": weight_map,
        }
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def _size(step: TensorStep, kernel: Kernel) -> int:
    return math.prod(step.tensor.shape) * kernel.dtype(step.tensor.name).itemsize


def _shards(
    steps: list[TensorStep], kernel: Kernel, shard_bytes: int
) -> Iterator[list[TensorStep]]:
    """Consecutive steps, at most `shard_bytes` together (a larger tensor has its own shard)."""
    shard: list[TensorStep] = []
    size = 0
    for step in steps:
        if shard and size + _size(step, kernel) > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(step)
        size += _size(step, kernel)
    yield shard


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: the checkpoint needs {needed / 1e9:.2f} GB and the disk has "
            f"{free / 1e9:.2f} GB free; make room or choose another folder"
        )
