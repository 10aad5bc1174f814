"""What the sources alone decide, computed once and kept for every later candidate."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock
from types import MappingProxyType
from typing import Any

from evomerge.materialize.statistics.store import Store, type_of
from evomerge.methods.core.view import Statistic, View


class Statistics:
    """Results of methods' `statistic=` and `joint=` functions by tensor and expert, or experts.

    Belongs to one set of sources. Held in memory are at most `limit` bytes, by default a sixteenth
    of the machine's memory, 256 MB at least: the least recently used results are dropped and had
    again when they are needed. Those that a `store` holds are mapped files, which all workers share
    and which the system drops and reads as it sees fit: they do not count.
    """

    def __init__(self, limit: int | None = None, store: Store | None = None) -> None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.limit = max(256 << 20, memory // 16) if limit is None else limit
        self.store = store
        self.nbytes = 0
        self._kept: OrderedDict[tuple[object, ...], Statistic] = OrderedDict()
        self._mapped: dict[tuple[object, ...], Statistic] = {}
        self._lock = Lock()

    @property
    def keeps(self) -> bool:
        """Whether anything is kept; else measures do better without what is made to be kept."""
        return self.limit > 0 or self.store is not None

    def of(
        self,
        statistic: Callable[[View, int], Statistic],
        view: View,
        tensor: str,
        experts: Sequence[str],
    ) -> list[Statistic]:
        """The statistic of each expert's tensor; `view` holds the experts in the same order."""
        return [
            self._kept_or(statistic, view, tensor, (name,), (), partial(statistic, view, i))
            for i, name in enumerate(experts)
        ]

    def of_all(
        self,
        joint: Callable[..., Statistic],
        view: View,
        tensor: str,
        experts: Sequence[str],
        arguments: Mapping[str, Any] = MappingProxyType({}),
    ) -> Statistic:
        """The statistic of the experts' tensors together; `view` holds them in the same order.

        `arguments` are those that `joint` names: each of their values has a statistic of its own.
        """
        values = tuple(sorted(arguments.items()))
        compute = partial(joint, view, **arguments)
        return self._kept_or(joint, view, tensor, tuple(experts), values, compute)

    def _kept_or(
        self,
        owner: Callable[..., Statistic],
        view: View,
        tensor: str,
        experts: tuple[str, ...],
        values: tuple[tuple[str, Any], ...],
        compute: Callable[[], Statistic],
    ) -> Statistic:
        key = (owner, tensor, *experts, *values, *sorted(view.calibrated))
        with self._lock:
            if key in self._mapped:
                return self._mapped[key]
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        stored, found = self._stored(owner, view, tensor, experts, values, compute)
        if stored and view.base.device.type == "cpu":
            self._mapped[key] = found
            return found
        with self._lock:  # threads that each write a tensor of a checkpoint share this object
            self.nbytes += found.nbytes - (self._kept[key].nbytes if key in self._kept else 0)
            self._kept[key] = found
            while self.nbytes > self.limit:
                self.nbytes -= self._kept.popitem(last=False)[1].nbytes
        return found

    def _stored(
        self,
        owner: Callable[..., Statistic],
        view: View,
        tensor: str,
        experts: tuple[str, ...],
        values: tuple[tuple[str, Any], ...],
        compute: Callable[[], Statistic],
    ) -> tuple[bool, Statistic]:
        """A statistic, and whether it is what the store holds."""
        store, hint, device = self.store, type_of(owner), view.base.device
        calibrated, more = bool(view.calibrated), [list(value) for value in values]
        path = store.place(owner, tensor, experts, view.dtype, calibrated, more) if store else None
        if store is None or path is None or hint is None:
            return False, compute()
        found = store.find(path, hint, device)
        if found is None:
            computed = compute()
            found = store.find(path, hint, device) if store.keep(path, computed) else None
            return found is not None, found or computed
        return True, found
