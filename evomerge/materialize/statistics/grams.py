"""Inner products of the sources, group by group: all that spherical recombination needs of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.common.one_thread import one_thread
from evomerge.models.layout import TensorSpec
from evomerge.models.source import Source
from evomerge.models.vocabulary import with_base_rows
from evomerge.recipe import BASE

CHUNK = 1 << 18
"""Entries of a tensor that are held in float64 at a time, per source."""

Grams = NDArray[np.float64]
"""Shape (groups, vectors, vectors)."""


def grams(
    sources: Mapping[str, Source], groups: Sequence[Sequence[TensorSpec]], *, task_vectors: bool
) -> Grams:
    """The Gram matrices of every group's flattened tensors, in one pass over the sources.

    Reads mapped tensors slice by slice: 8·`CHUNK` bytes per source are held beside them. Sums are
    float64, over slices in order, the same bytes on any number of threads.

    Args:
        sources: the base first.
        groups: which tensors count together.
        task_vectors: of each expert's difference to the base, rather than of all sources' weights.
    """
    found = []
    for group in groups:
        total = torch.zeros(1, dtype=torch.float64)
        for slices in slices_of(sources, group):
            vectors = slices[1:] - slices[:1] if task_vectors else slices
            with one_thread():
                total = total + vectors @ vectors.T
        found.append(total.numpy())
    return np.stack(found)


def remembered(path: Path, key: str) -> Grams | None:
    """The Grams that `remember` wrote under this key; None when there are none, or others."""
    try:
        with np.load(path, allow_pickle=False) as held:
            return held["grams"] if str(held["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError):
        return None


def remember(path: Path, key: str, values: Grams) -> None:
    """Write Grams beside a study, whole or not at all; a few kilobytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, grams=values, key=np.array(key))
    partial.replace(path)


def slices_of(sources: Mapping[str, Source], group: Sequence[TensorSpec]) -> Iterator[Tensor]:
    """Yield the group's entries in order, float64 [sources, at most CHUNK], the base's in row 0."""
    for spec in group:
        tensors = [with_base_rows(s, sources[BASE], spec).reshape(-1) for s in sources.values()]
        for start in range(0, tensors[0].numel(), CHUNK):
            yield torch.stack([t[start : start + CHUNK].double() for t in tensors])
