"""Resample documents for the interval of a corpus score, and permute them for paired tests.

An interval is the bootstrap's: the score of as many documents drawn with replacement (Efron 1979).
A paired test is by permutation: if two recipes were alike, each document's two parts could as well
change sides (Fisher 1935; Riezler & Maxwell 2005, approximate randomization). Draws come from a
fixed seed, so the same parts give the same results, and no p-value is below about 1/`DRAWS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evomerge.judging.constraints import Values
from evomerge.judging.corpus_values import AGGREGATES, CorpusValues

DRAWS = 2_000
_BLOCK = 1 << 21
"""Most documents of all draws that are held at once."""
_CLIFF = 1e6
"""How fast an interval grows at z-scores that no draw reaches: there it holds everything."""


@dataclass(frozen=True, eq=False)
class Resampled:
    """Draws of a score, or of a difference.

    Attributes:
        value: as observed.
        draws: ascending, shape (draws,).
    """

    value: float
    draws: Values

    @classmethod
    def of(cls, values: CorpusValues) -> Resampled:
        """Draw the score of a corpus, its documents resampled."""
        (sums,) = zip(*_resampled_sums([values.parts], DRAWS), strict=True)
        draws = AGGREGATES[values.aggregate](np.concatenate(sums))
        return cls(float(values.mean()), np.sort(draws))

    def end(self, z: Values) -> Values:
        """Give the draws' quantiles by z-score, never on the wrong side of the value."""
        from evomerge.judging.special_functions import ndtr, ndtri

        z = np.asarray(z, np.float64)
        ends = np.quantile(self.draws, ndtr(z))
        ends = np.where(z < 0, np.minimum(ends, self.value), np.maximum(ends, self.value))
        beyond = np.abs(z) + ndtri(0.5 / len(self.draws))
        spread = np.maximum(np.abs(ends - self.value), np.finfo(np.float64).tiny)
        return ends + np.sign(z) * _CLIFF * spread * np.maximum(0, beyond)


@dataclass(frozen=True, eq=False)
class CorpusPair:
    """Two recipes' parts of the same documents.

    Attributes:
        aggregate: a name in `AGGREGATES`.
        ours: of A, shape (documents, parts).
        theirs: of B, equally.
    """

    aggregate: str
    ours: Values
    theirs: Values

    @classmethod
    def of(cls, ours: CorpusValues, theirs: CorpusValues) -> CorpusPair:
        """Pair two recipes' values of one task."""
        return cls(ours.aggregate, ours.parts, theirs.parts)

    def resampled(self, count: int) -> Values:
        """Draw both scores of the same resampled documents, shape (count, 2)."""
        score = AGGREGATES[self.aggregate]
        drawn = zip(*_resampled_sums([self.ours, self.theirs], count), strict=True)
        return np.stack([score(np.concatenate(sums)) for sums in drawn], axis=-1)

    @cached_property
    def permuted(self) -> Resampled:
        """The difference A − B, around which its draws lie under permutation.

        The interval that results is the test inverted: the differences that it does not reject if
        they are a shift of the scores. Swapping all documents turns a draw's sign, so each counts
        with both.
        """
        score, changes = AGGREGATES[self.aggregate], self.theirs - self.ours
        ours, theirs = self.ours.sum(axis=0), self.theirs.sum(axis=0)
        observed = float(score(ours) - score(theirs))
        n, rng = len(changes), np.random.default_rng([len(changes), 1])
        gaps = []
        for rows in _blocks(n, DRAWS):
            moved = rng.integers(2, size=(rows, n)).astype(np.float64) @ changes
            gaps.append(score(ours + moved) - score(theirs - moved))
        drawn = np.concatenate(gaps)
        return Resampled(observed, np.sort(observed + np.concatenate([drawn, -drawn])))


def _resampled_sums(sets: list[Values], count: int) -> Iterator[list[Values]]:
    """Yield the sums of each set of parts over resampled documents, in blocks of draws."""
    n = len(sets[0])
    rng = np.random.default_rng([n, 0])
    for rows in _blocks(n, count):
        # row r counts its documents in the bins r·n … r·n + n − 1 of one long count
        drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        yield [counts.astype(np.float64) @ parts for parts in sets]


def _blocks(n: int, count: int) -> Iterator[int]:
    """Yield numbers of draws of n documents that are held at once, `count` in all."""
    size = max(1, _BLOCK // n)
    for start in range(0, count, size):
        yield min(size, count - start)
