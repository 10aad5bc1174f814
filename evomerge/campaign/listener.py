"""The listener: is told what happens in a campaign, for display."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from evomerge.study.record import Evaluation


class Listener(Protocol):
    """Shows what happens; its methods must not raise."""

    def on_record(self, evaluations: Iterable[Evaluation]) -> None:
        """Take in what earlier runs of the campaign have recorded."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Begin a phase with `done` of its `total` evaluations already recorded."""

    def recorded(self, evaluation: Evaluation) -> None:
        """Show an evaluation that was recorded."""

    def said(self, message: str) -> None:
        """Show the user a message."""
