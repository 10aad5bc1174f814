"""A grid over two measures that keeps the best of every cell (MAP-Elites, arXiv:1504.04909)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.judging.scores import Values


class GridArchive:
    """One elite per cell of a grid over the measures; slots are the cells' flat indices."""

    def __init__(self, shape: Sequence[int], bounds: Sequence[Sequence[float]]) -> None:
        """`shape`: cells along each measure; `bounds`: each measure's [low, high]."""
        self.shape = tuple(shape)
        self._low, self._high = np.array(bounds, dtype=float).T
        self._quality: Values = np.full(int(np.prod(self.shape)), -np.inf)
        self._filled: list[int] = []  # in the order in which cells were first reached

    def __len__(self) -> int:
        return len(self._filled)

    @property
    def slots(self) -> NDArray[np.int64]:
        """The cells that hold an elite, in the order in which they were first reached."""
        return np.array(self._filled, np.int64)

    @property
    def quality(self) -> Values:
        """The elites' quality, in the order of `slots`."""
        return self._quality[self._filled]

    def cell(self, measures: Values) -> int:
        """The flat index of the cell that holds `measures`; beyond the bounds, the outermost.

        Cells are closed below and open above, but for the last, which holds the upper bound.
        """
        share = (np.asarray(measures) - self._low) / (self._high - self._low)
        index = np.clip(np.floor(share * self.shape), 0, np.array(self.shape) - 1).astype(int)
        return int(np.ravel_multi_index(tuple(index), self.shape))

    def offer(self, measures: Values, quality: float) -> int | None:
        """Put a newcomer into its cell if that is empty or holds a worse one.

        Returns:
            The cell it takes; None when it stays out. Of equals the incumbent stays.
        """
        cell = self.cell(measures)
        if np.isneginf(self._quality[cell]):
            self._filled.append(cell)
        elif not quality > self._quality[cell]:
            return None
        self._quality[cell] = quality
        return cell

    def parents(self, rng: np.random.Generator, *, by_quality: bool = False) -> tuple[int, int]:
        """The cells of two different elites (of the only one, twice), drawn uniformly.

        `by_quality`: in proportion to their quality, which must not be negative, as the authors of
        M2N2 do for their baseline.

        Raises:
            ValueError: the archive is empty.
        """
        if not self._filled:
            raise ValueError("nobody to draw: the archive is empty")
        quality = self.quality
        chances = quality / quality.sum() if by_quality and quality.sum() > 0 else None
        apart = np.count_nonzero(quality) > 1 if chances is not None else len(self) > 1
        first, second = rng.choice(self.slots, size=2, replace=not apart, p=chances)
        return int(first), int(second)

    def coverage(self) -> float:
        """The share of cells that hold an elite."""
        return len(self) / self._quality.size
