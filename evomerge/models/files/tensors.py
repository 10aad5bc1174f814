"""Named tensors, some of them computed at every read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Made:
    """A tensor that is computed from others when it is read; `make` gives it, of `dtype`."""

    dtype: torch.dtype
    make: Callable[[], Tensor]


class Tensors(Mapping[str, Tensor]):
    """Name → tensor: a memory-mapped view, or one that is made anew and held by nobody here."""

    def __init__(self, entries: Mapping[str, Tensor | Made]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        return entry.make() if isinstance(entry, Made) else entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def mapped(self, name: str) -> list[Tensor]:
        """The view of a tensor that is held here; nothing of one that is made at every read."""
        entry = self._entries[name]
        return [] if isinstance(entry, Made) else [entry]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of one tensor; nothing is made for it."""
        return self._entries[name].dtype

    def part(self, names: Mapping[str, str]) -> Tensors:
        """Some of the tensors, under other names: new name → name here."""
        return Tensors({new: self._entries[name] for new, name in names.items()})
