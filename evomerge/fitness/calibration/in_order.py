"""Work of several threads whose sums do not depend on how many there are.

Each thread computes on one core, so that a product has the same bytes whoever makes it; texts are
dealt to the threads, and what they find is added in the order of the texts.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from evomerge.common.one_thread import one_thread

Unit = TypeVar("Unit")


class _Abandoned(Exception):  # noqa: N818
    """Another thread has failed, whose error is the one to tell."""


class InOrder:
    """Lets units of work take turns, by their numbers from 0 on, at each of several sums."""

    def __init__(self) -> None:
        self._next: dict[str, int] = defaultdict(int)
        self._changed = threading.Condition()
        self._failed = False

    @contextmanager
    def turn(self, name: str, unit: int) -> Iterator[None]:
        """Hold the sum of that name within; every unit must come, once to each name."""
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._next[name] == unit)
            if self._failed:
                raise _Abandoned
        yield
        with self._changed:
            self._next[name] += 1
            self._changed.notify_all()

    def fail(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()


def in_threads(
    work: Callable[[int, Unit, InOrder], None], units: Sequence[Unit], threads: int
) -> None:
    """Call `work(number, unit, order)` for every unit, begun in their order.

    Raises:
        Exception: the first that a unit raised; no further unit is begun.
    """
    order = InOrder()

    def one(number: int, unit: Unit) -> None:
        try:
            work(number, unit, order)
        except BaseException:
            order.fail()
            raise

    with one_thread():
        pool = ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1))
        with pool:
            futures = [pool.submit(one, *each) for each in enumerate(units)]
            try:
                for future in futures:
                    future.result()
            except BaseException as error:
                order.fail()
                pool.shutdown(wait=True, cancel_futures=True)
                if isinstance(error, _Abandoned):
                    raised = (f.exception() for f in futures if f.done() and not f.cancelled())
                    raise next(e for e in raised if e and not isinstance(e, _Abandoned)) from None
                raise
