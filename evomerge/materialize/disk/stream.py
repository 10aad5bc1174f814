"""Streams a recipe's weights to disk: one tensor in memory at a time, no shard in part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from evomerge.common.errors import InputError
from evomerge.materialize.disk.scales import embedding_factor
from evomerge.materialize.disk.shard import Entry, is_complete, write_shard
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import TensorStep, check_contents, plan
from evomerge.models.files.page_release import reading_once
from evomerge.models.layout import Layout
from evomerge.recipe import BASE, Recipe

SHARD_BYTES = 5 * 10**9


@torch.no_grad()
def write_weights(
    recipe: Recipe,
    layout: Layout,
    kernel: Kernel,
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    written: Callable[[str, Tensor], None] | None = None,
) -> list[Path]:
    """Write the merged weights as safetensors, with an index when there are several shards.

    Tied tensors are written once, under the name of the one that is stored; experts of a mixture
    in the pieces in which transformers saves them. Layers are numbered by their slots. An input
    scale is folded into the embeddings where that is exact. Shards that are complete in the folder
    already are kept: the caller knows that they are of this recipe, dtype and `shard_bytes`.

    In memory are the merged tensors that `write_shard` makes at a time (of a mixture, those whose
    pieces are being written), and some mapped pages of the sources: see `reading_once`.

    Args:
        written: is called with the name of each tensor that is written, and the tensor; by one of
            several threads.

    Returns:
        The files with weights.

    Raises:
        InputError: the recipe does not fit the models, was made from other weights, scales in a
            way that no checkpoint can say, or the disk has not the room.
        NonFiniteError: a merged tensor is not finite.
    """
    # plan, and refuse what cannot be written
    steps = plan(recipe, layout, kernel.sources)
    factor = embedding_factor(recipe, layout)
    check_contents(recipe, kernel.sources)
    merged = (_entries(step, kernel, recipe, factor) for step in steps)
    # deal the tensors to shards; those that no merge changes have shards of their own, the last
    beside = ([_given(name, tensor)] for name, tensor in kernel.sources[BASE].beside().items())
    entries = [*_shards(merged, shard_bytes), *_shards(beside, shard_bytes)]
    names = _shard_names(len(entries))
    # write the shards that are not there yet
    lacking = [
        (folder / name, shard)
        for name, shard in zip(names, entries, strict=True)
        if not is_complete(folder / name, shard)
    ]
    check_room(folder, sum(entry.nbytes for _, shard in lacking for entry in shard))
    mapped = (t for s in kernel.sources.values() for name in s.names() for t in s.mapped(name))
    with reading_once(mapped):
        for path, shard in lacking:
            write_shard(path, shard, written, together=kernel.compiles)
    if len(names) > 1:
        total = sum(entry.nbytes for shard in entries for entry in shard)
        weight_map = {
            entry.name: name for name, shard in zip(names, entries, strict=True) for entry in shard
        }
        index = {
            "metadata": {"total_size": total},
            "weight_map": weight_map,
        }
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def saved_parts(
    recipe: Recipe, layout: Layout, kernel: Kernel
) -> list[Callable[[], list[tuple[str, Tensor]]]]:
    """Return what makes the tensors of the recipe's checkpoint, under their names there.

    Each gives the tensors that one merged tensor is saved as, in the dtype of the checkpoint, on
    the kernel's device. The sources' pages stay in memory.

    Raises:
        InputError: the recipe does not fit the models, or scales in a way that no checkpoint can
            say.
        NonFiniteError: when one is called, and the merged tensor is not finite.
    """
    factor = embedding_factor(recipe, layout)

    def part(step: TensorStep) -> list[tuple[str, Tensor]]:
        with torch.no_grad():
            entries = _entries(step, kernel, recipe, factor)
            return [(entry.name, entry.make()) for entry in entries]

    return [partial(part, step) for step in plan(recipe, layout, kernel.sources)]


def _entries(step: TensorStep, kernel: Kernel, recipe: Recipe, factor: float) -> list[Entry]:
    """Return a step's entries in a shard."""
    dtype, base = kernel.dtype(step.tensor.name), kernel.sources[BASE]
    pending: dict[str, Tensor] = {}  # pieces of the merged tensor that are not written yet
    alone = Lock()

    def piece(name: str) -> Tensor:
        with alone:
            if name not in pending:
                pending.update(base.as_saved({step.name: merged()}))
            return pending.pop(name)

    def merged() -> Tensor:
        out = torch.empty(step.shape, dtype=dtype, device=kernel.device)
        kernel.fill(out, step, recipe.seed)
        if step.slot is None and step.tensor.group == "embeddings" and factor != 1:
            out.mul_(factor)
        return out

    pieces = base.as_saved({step.name: torch.empty(step.shape, dtype=dtype, device="meta")})
    return [
        Entry(name, tuple(like.shape), dtype, partial(piece, name)) for name, like in pieces.items()
    ]


def _given(name: str, tensor: Tensor) -> Entry:
    return Entry(name, tuple(tensor.shape), tensor.dtype, tensor.contiguous)


def _shards(groups: Iterable[list[Entry]], shard_bytes: int) -> Iterator[list[Entry]]:
    """Yield shards of consecutive groups up to `shard_bytes`; a larger group has its own shard."""
    shard: list[Entry] = []
    size = 0
    for group in groups:
        added = sum(entry.nbytes for entry in group)
        if shard and size + added > shard_bytes:
            yield shard
            shard, size = [], 0
        shard += group
        size += added
    if shard:
        yield shard


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def check_room(folder: Path, needed: int) -> None:
    """Refuse to write `needed` bytes where the disk has less room.

    Raises:
        InputError: says what is needed and what is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: the weights need {needed / 1e9:.2f} GB and the disk has "
            f"{free / 1e9:.2f} GB free; make room or choose another folder"
        )
