"""How long work may take before it is given up as hung, by how long it took before."""

from __future__ import annotations

from collections.abc import Mapping, Set

FACTOR = 10.0
"""So many times as long as the slowest by then."""
LEAST = 120.0
"""Seconds that anything may take."""


class Timeouts:
    """Limits derived from measured times: of building a worker, writing a recipe, scoring an item.

    The first recipe with a method has no limit: it may compute what the models alone decide, which
    takes as long as it takes, and other workers may have to do the same.
    """

    def __init__(self, least: float = LEAST) -> None:
        """`least` in seconds."""
        self._least = least
        self._methods: set[str] = set()
        self._building = self._writing = self._scoring = 0.0

    def to_build(self) -> float | None:
        """Seconds that a worker may take until it stands; None: any time."""
        return self._limit(self._building) if self._building else None

    def to_measure(self, methods: Set[str], items: int) -> float | None:
        """Seconds that so many items of a recipe of these methods may take; None: any time."""
        if not self._scoring or not methods <= self._methods:
            return None
        return self._limit(self._writing + self._scoring * items)

    def built(self, seconds: float) -> None:
        """Learn from a worker that stands."""
        self._building = max(self._building, seconds)

    def measured(self, methods: Set[str], items: int, seconds: Mapping[str, float]) -> None:
        """Learn from an evaluation: stage (`materialize`, `score`) → seconds."""
        self._methods |= methods
        self._writing = max(self._writing, seconds["materialize"])
        self._scoring = max(self._scoring, seconds["score"] / max(1, items))

    def _limit(self, longest: float) -> float:
        return max(self._least, FACTOR * longest)
