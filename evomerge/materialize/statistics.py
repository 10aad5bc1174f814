"""What the sources alone decide, computed once per worker and kept for every later candidate."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from evomerge.methods.registry import Statistic, View


class Statistics:
    """Results of methods' `statistic=` and `joint=` functions by tensor and expert, or experts.

    Belongs to one set of sources. Holds at most `limit` bytes, by default a sixteenth of the
    machine's memory, 256 MB at least: the least recently used results are dropped and computed
    again when they are needed.
    """

    def __init__(self, limit: int | None = None) -> None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.limit = max(256 << 20, memory // 16) if limit is None else limit
        self.nbytes = 0
        self._kept: OrderedDict[tuple[object, ...], Statistic] = OrderedDict()

    def of(
        self,
        statistic: Callable[[View, int], Statistic],
        view: View,
        tensor: str,
        experts: Sequence[str],
    ) -> list[Statistic]:
        """The statistic of each expert's tensor; `view` holds the experts in the same order."""
        return [
            self._kept_or(statistic, (tensor, name), partial(statistic, view, i))
            for i, name in enumerate(experts)
        ]

    def of_all(
        self,
        joint: Callable[[View], Statistic],
        view: View,
        tensor: str,
        experts: Sequence[str],
    ) -> Statistic:
        """The statistic of the experts' tensors together; `view` holds them in the same order."""
        return self._kept_or(joint, (tensor, *experts), partial(joint, view))

    def _kept_or(
        self, owner: object, names: tuple[str, ...], compute: Callable[[], Statistic]
    ) -> Statistic:
        key = (owner, *names)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        found = self._kept[key] = compute()
        self.nbytes += found.nbytes
        while self.nbytes > self.limit:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes
        return found
