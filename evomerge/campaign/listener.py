"""Who is told what happens in a campaign."""

from __future__ import annotations

from typing import Protocol

from evomerge.study.record import Evaluation


class Listener(Protocol):
    """Told what happens, for display; must not raise."""

    def phase(self, name: str, done: int, total: int) -> None:
        """A phase begins with `done` of its `total` evaluations already recorded."""

    def recorded(self, evaluation: Evaluation) -> None:
        """An evaluation was recorded."""

    def said(self, message: str) -> None:
        """Something happened that the user should know of."""
