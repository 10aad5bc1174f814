"""Numbers that belong to the entries of a tensor, cut to the slices that methods are called on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from evomerge.methods.core.view import Tensor

LANES = 64
"""Indices that `places` is given: what vector instructions take at a time divides it."""


@lru_cache(maxsize=1 << 10)
def first_places(start: int = 0) -> Tensor:
    """Return the first `LANES` indices of a slice that begins at `start`, int32, modulo 2³²."""
    import torch

    wrapped = (start + (1 << 31)) % (1 << 32) - (1 << 31)
    return torch.arange(LANES, dtype=torch.int32) + wrapped


def places(like: Tensor, first: Tensor) -> Tensor:
    """Return the index of every entry of a slice, int32 of the shape of `like`, modulo 2³².

    Args:
        first: the slice's, from `first_places`.
    """
    import torch

    if not traced(like) or like.device.type != "cpu":
        # one number goes to a GPU with the operation; more would be copied there before
        count = torch.arange(like.numel(), dtype=torch.int32, device=like.device)
        return (count + first[0]).view(like.shape)
    # compiled for a CPU, to count takes fifty operations; to add to indices that are read, one
    count = torch.arange(like.numel())
    rows = (count // LANES * LANES).to(torch.int32)
    return (rows + first.view(LANES)[count % LANES]).view(like.shape)


def traced(tensor: Tensor) -> bool:
    """Say whether a tensor stands for others, in a function that is about to be compiled."""
    import torch

    return type(tensor) is not torch.Tensor


@dataclass(frozen=True)
class Entries:
    """One number for every entry of a tensor, given whole or once per row or column.

    Attributes:
        values: (n,), or (rows,) or (columns,).
        columns: entries of a row; 0 where every entry has a value of its own.
        per_row: whether the values are the rows' or the columns'.
    """

    values: Tensor
    columns: int = 0
    per_row: bool = True

    def part(self, where: slice) -> Tensor:
        """Return the numbers of a slice of the flat tensor."""
        import torch

        if not self.columns:
            return self.values[where]
        index = torch.arange(where.start, where.stop, device=self.values.device)
        place = index // self.columns if self.per_row else index % self.columns
        return self.values[place]


def part_of(measured: Any, where: slice, shape: Sequence[int] = (-1,)) -> Any:
    """Cut what was measured to a slice of the flat tensors.

    Its `Entries` are cut and given a shape, and so is all else in it that has a `part`.
    """
    if hasattr(measured, "dtype"):  # a tensor of numbers, the same in every slice
        return measured
    if isinstance(measured, Entries):
        return measured.part(where).view(*shape)
    if hasattr(measured, "part"):
        return measured.part(where)
    if hasattr(measured, "_fields"):
        return type(measured)(*(part_of(value, where, shape) for value in measured))
    if isinstance(measured, list):
        return [part_of(value, where, shape) for value in measured]
    return measured
