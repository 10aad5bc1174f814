"""Trackers as users write them: outside evomerge."""

from __future__ import annotations

import threading

from evomerge.trackers import Tracker


class Diary(Tracker):
    """Remembers what it hears; fails where it is told to."""

    heard: list = []  # noqa: RUF012 - emptied by each test
    patience = threading.Event()

    def __init__(self, *, fails_in: str | None = None, hangs: bool = False) -> None:
        self._fails_in, self._hangs = fails_in, hangs

    def _hear(self, *what):
        if self._hangs:
            self.patience.wait()
        if self._hangs or what[0] == self._fails_in:
            raise ConnectionError("nobody answers")
        self.heard.append(what)

    def begin(self, run):
        self._hear("begin", run)

    def record(self, evaluation, best):
        self._hear("record", evaluation, best)

    def end(self, outcome):
        self._hear("end", outcome)


class Other(Diary):
    """A second one, with a memory of its own."""

    heard: list = []  # noqa: RUF012


class Stranger:
    """Not a tracker."""
