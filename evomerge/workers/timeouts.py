"""Time-outs for hung work, derived from measured durations."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Literal

from evomerge.workers.job import Job

FACTOR = 10.0
"""A time-out is so many times the longest duration measured until then."""
LEAST = 120.0
"""Seconds: no time-out is shorter."""


class Timeouts:
    """Limits on building a worker and on measuring a recipe, which is written, then scored by item.

    The first recipe with a method has no limit: it may compute what the models alone decide, which
    takes as long as it takes, and other workers may have to do the same.
    """

    def __init__(self, least: float = LEAST) -> None:
        """Know no durations yet; `least` is the shortest time-out in seconds."""
        self._least = least
        self._methods: set[str] = set()
        self._building = self._writing = self._scoring = 0.0

    def build_limit(self) -> float | None:
        """Seconds that a worker may take until it stands; None for no limit."""
        return self._limit(self._building) if self._building else None

    def measure_limit(self, methods: Set[str], items: int) -> float | None:
        """Seconds that so many items of a recipe of these methods may take; None for no limit."""
        if not self._scoring or not methods <= self._methods:
            return None
        return self._limit(self._writing + self._scoring * items)

    def limit_of(
        self, job: Job, sizes: Mapping[str, int], said: float | Literal["auto"] | None
    ) -> float | None:
        """Seconds that a job may take: as the campaign file says, or derived; None for no limit.

        Args:
            sizes: split → number of its items.
            said: `workers.timeout`.
        """
        derived = self.measure_limit(job.methods, job.count_items(sizes))
        return derived if said == "auto" else said

    def record_job(self, job: Job, sizes: Mapping[str, int], seconds: Mapping[str, float]) -> None:
        """Learn from a job that was measured; see `record_measurement`."""
        self.record_measurement(job.methods, job.count_items(sizes), seconds)

    def record_build(self, seconds: float) -> None:
        """Learn from a worker that stands."""
        self._building = max(self._building, seconds)

    def record_measurement(
        self, methods: Set[str], items: int, seconds: Mapping[str, float]
    ) -> None:
        """Learn from an evaluation: stage (`materialize`, `score`) → seconds."""
        self._methods |= methods
        self._writing = max(self._writing, seconds["materialize"])
        self._scoring = max(self._scoring, seconds["score"] / max(1, items))

    def _limit(self, longest: float) -> float:
        return max(self._least, FACTOR * longest)
