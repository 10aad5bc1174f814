"""`NicheArchive`, in which members compete for the items they solve (M2N2, arXiv:2508.16204)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.judging.scores import Values


class NicheArchive:
    """Fitness sharing over items: who solves what few others solve is worth keeping.

    With s_ij the score of member i on item j and z_j = Σ_i s_ij, member i's fitness is
    f_i = Σ_j c_j s_ij / z_j^α (eq. 1). c_j is 1 for items whose scores have all been 0 or 1; for
    others the members' minimum is subtracted from s first and c_j = max_i s_ij. α = 0 switches the
    competition off. Decided where paper and released code differ:

    - z_j = 0 counts as 1, as in the code; the paper adds ε.
    - attraction divides by z_j^α, as in the code; the paper by z_j.
    - of the least fit that tie, the one in the lowest slot goes, the newcomer last, as in the code.
    - where nobody is stronger than A on any item (Σg = 0; the code then divides 0 by 0), B is
      drawn by fitness among the others.

    Two things are added: c_j is scaled so that every task has as much to give, however many items
    it has; and members compete only on items that they all have been scored on.

    Members sit in slots 0 to `len(self)` − 1; a newcomer takes the slot of the one it replaces.
    """

    def __init__(self, capacity: int, alpha: float = 1.0) -> None:
        """`capacity`: P, how many members it holds; `alpha`: how much crowding costs."""
        self.capacity = capacity
        self.alpha = alpha
        self._count = 0
        self._scores: Values = np.empty((capacity + 1, 0))  # the last row is the newcomer's
        self._partial = np.zeros(capacity + 1, dtype=bool)
        self._binary = np.ones(0, dtype=bool)
        self._tasks = np.zeros(0, np.int64)
        self._shares: Values = np.ones(0)
        self._prices: tuple[Values, Values] | None = None  # of the members, until one changes

    def __len__(self) -> int:
        return self._count

    @property
    def scores(self) -> Values:
        """The members' scores, shape (members, items); NaN where not scored. A view."""
        return self._scores[: self._count]

    def offer(self, scores: Values, tasks: NDArray[np.int64] | None = None) -> int | None:
        """Let a newcomer in, dropping the least fit of P + 1 once there are P members.

        Args:
            scores: shape (items,), larger is better, NaN where not scored. Later offers may have
                more items than earlier ones, not fewer.
            tasks: the task number of each item, shape (items,); by default all are of one.

        Returns:
            The slot it takes, which was its predecessor's; None when it is the least fit itself.
        """
        if len(scores) > self._scores.shape[1]:
            self._widen(len(scores), tasks)
        # 1. write the newcomer's scores in the row after the members'
        row = self._count
        self._scores[row] = scores
        missing = np.isnan(scores)
        self._partial[row] = missing.any()
        self._binary &= (scores * scores == scores) | missing
        if self._count < self.capacity:
            self._count += 1
            self._prices = None
            return row
        # 2. the least fit of P + 1 goes, and the newcomer takes its slot
        fitness = self.fitness(newcomer=True)
        # sums that differ by rounding alone are ties, on every machine
        loser = int(np.argmax(fitness <= fitness.min() * (1 + 1e-9)))
        if loser == row:
            return None
        self._scores[loser] = self._scores[row]
        self._partial[loser] = self._partial[row]
        self._prices = None
        return loser

    def fitness(self, *, newcomer: bool = False) -> Values:
        """Every member's fitness under competition, shape (members,).

        With `newcomer`, the one offered last takes part, and its fitness stands last.
        """
        scores, price = self._competition(self._count + newcomer)
        return scores @ price

    def parents(self, rng: np.random.Generator, *, attraction: bool = True) -> tuple[int, int]:
        """The slots of two parents: A ~ f, B ~ g with attraction, B ~ f without.

        g_k = Σ_j c_j / z_j^α · max(0, s_kj − s_Aj): B is strong where A is weak. Without attraction
        both may be the same member.

        Raises:
            ValueError: the archive is empty.
        """
        self._prices = self._prices or self._competition(self._count)
        scores, price = self._prices
        # 1. A in proportion to fitness (eq. 1)
        fitness = scores @ price
        first = draw(rng, fitness)
        if not attraction or self._count == 1:
            return first, draw(rng, fitness)
        # 2. B in proportion to what it gains where A is weak (eq. 2)
        gain = np.subtract(scores, scores[first])
        match = np.maximum(gain, 0, out=gain) @ price
        if not match.sum() > 0:
            match = fitness if fitness.sum() > 0 else np.ones(self._count)
            match = np.where(np.arange(self._count) == first, 0, match)
        return first, draw(rng, match)

    def coverage(self) -> float:
        """The share of items solved by at least one member; for continuous scores, the mean over
        items of the best member's score. 0 when empty.
        """
        scores = self._common(self._count)[0]
        return float(scores.max(axis=0).mean()) if scores.size else 0.0

    def entropy(self) -> float:
        """The mean over items of the entropy, in bits, of being solved by a member drawn at random.

        Continuous scores are first scaled to [0, 1] between the worst and the best member's. High
        means that members solve different items; 0 that they agree on all, or that there are none.
        """
        scores, common = self._common(self._count)
        if not scores.size:
            return 0.0
        low, high = scores.min(axis=0), scores.max(axis=0)
        spread = np.where(high > low, high - low, 1)
        solved = np.where(self._binary[common], scores, (scores - low) / spread).mean(axis=0)
        inner = solved[(solved > 0) & (solved < 1)]
        bits = -(inner * np.log2(inner) + (1 - inner) * np.log2(1 - inner))
        return float(bits.sum() / scores.shape[1])

    def _competition(self, rows: int) -> tuple[Values, Values]:
        """Return s over the common items, and the price c_j / z_j^α of each."""
        scores, common = self._common(rows)
        # 1. the capacity of each item: 1 on average, as much for every task
        binary, shares = self._binary[common], self._shares
        if shares.size != scores.shape[1]:
            shares = _equal_tasks(self._tasks[common])
        # 2. continuous scores lose their minimum, and are worth their maximum
        if binary.all():
            worth = shares
        else:
            scores = scores - np.where(binary, 0, scores.min(axis=0))
            worth = shares * np.where(binary, 1, scores.max(axis=0))
        # 3. the price of an item: its worth shared among those who solve it
        crowd = scores.sum(axis=0)
        crowd[crowd <= 0] = 1
        return scores, worth / crowd**self.alpha

    def _common(self, rows: int) -> tuple[Values, NDArray[np.bool_] | slice]:
        """The first rows, over the items that all of them have, and which columns these are."""
        scores = self._scores[:rows]
        if not self._partial[:rows].any():
            return scores, slice(None)
        common: NDArray[np.bool_] = np.logical_not(np.isnan(scores).any(axis=0))
        return scores[:, common], common

    def _widen(self, width: int, tasks: NDArray[np.int64] | None) -> None:
        """Make room for items never seen before; the members lack them."""
        known = self._scores.shape[1]
        wider = np.full((self.capacity + 1, width), np.nan)
        wider[:, :known] = self._scores
        self._scores = wider
        self._prices = None
        self._partial[: self._count] = True
        self._binary = np.append(self._binary, np.ones(width - known, dtype=bool))
        self._tasks = np.zeros(width, np.int64) if tasks is None else tasks
        self._shares = _equal_tasks(self._tasks)


def draw(rng: np.random.Generator, weights: Values) -> int:
    """An index drawn in proportion to non-negative `weights`; uniformly when all are 0.

    Raises:
        ValueError: there are none.
    """
    if not len(weights):
        raise ValueError("nobody to draw: the archive is empty")
    steps = np.cumsum(weights)
    if not steps[-1] > 0:
        return int(rng.integers(len(weights)))
    place = np.searchsorted(steps, rng.random() * steps[-1], side="right")
    return min(int(place), len(weights) - 1)


def _equal_tasks(tasks: NDArray[np.int64]) -> Values:
    """A capacity for each item, 1 on average, that adds up to the same for every task."""
    counts = np.bincount(tasks)
    return len(tasks) / (np.count_nonzero(counts) * counts[tasks]) if len(tasks) else np.ones(0)
