"""Item scores by task as one row of numbers, the same item always in the same column."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from evomerge.judging.scores import Values


class ItemColumns:
    """Gives every (task, item) a column, in the order in which they are first seen.

    Attributes:
        tasks: the task's number of each column, shape (columns,), int64.
    """

    def __init__(self) -> None:
        self.tasks: NDArray[np.int64] = np.zeros(0, np.int64)
        self._of: dict[str, NDArray[np.int64]] = {}

    def row(self, items: Mapping[str, Values], signs: Mapping[str, float]) -> Values:
        """The items as a row over all columns known by then, NaN where there is no score.

        A task's items are a prefix of the study's order, so that a longer list extends the columns
        and moves none.

        Args:
            items: task → scores, each shape (n,).
            signs: task → −1 where smaller is better; others count as +1.
        """
        for task, values in items.items():
            self._grow(task, len(values))
        row = np.full(len(self.tasks), np.nan)
        for task, values in items.items():
            row[self._of[task][: len(values)]] = values * signs.get(task, 1.0)
        return row

    def _grow(self, task: str, length: int) -> None:
        known = self._of.setdefault(task, np.zeros(0, np.int64))
        missing = length - len(known)
        if missing > 0:
            number = list(self._of).index(task)
            start = len(self.tasks)
            self._of[task] = np.concatenate([known, np.arange(start, start + missing)])
            self.tasks = np.concatenate([self.tasks, np.full(missing, number)])
