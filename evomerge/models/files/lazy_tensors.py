"""Hold named tensors, some of them computed at every read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Computed:
    """A tensor of `dtype` that `make` computes from others at every read."""

    dtype: torch.dtype
    make: Callable[[], Tensor]


class LazyTensors(Mapping[str, Tensor]):
    """Name → tensor: a memory-mapped view, or one that is computed anew and not kept.

    Attributes:
        left_out: names of tensors that are stored beside these and are not the model's.
    """

    def __init__(
        self, entries: Mapping[str, Tensor | Computed], left_out: tuple[str, ...] = ()
    ) -> None:
        self._entries, self.left_out = entries, left_out

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        return entry.make() if isinstance(entry, Computed) else entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def mapped(self, name: str) -> list[Tensor]:
        """Return the memory-mapped view of a tensor, or nothing if it is computed."""
        entry = self._entries[name]
        return [] if isinstance(entry, Computed) else [entry]

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of one tensor without computing it."""
        return self._entries[name].dtype

    def part(self, names: Mapping[str, str]) -> LazyTensors:
        """Select tensors under other names: new name → name here."""
        return LazyTensors({n: self._entries[name] for n, name in names.items()}, self.left_out)
