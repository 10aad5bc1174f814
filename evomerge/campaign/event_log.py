"""The event log: what happened to workers and machines, counted, and the latest in words.

It is one note of the study, of bounded size however long the campaign lasts. What engines find out
about themselves is a second note, and how much of the merging they were spared a third.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from evomerge.campaign.listener import Listener
from evomerge.study.study import Study
from evomerge.workers.job import Event

NOTE = "events"
ENGINE = "engine"
"""The note that holds the engines' facts."""
REUSE = "merging"
"""The note that counts weights which candidates found in the worker's model."""
REUSE_EVERY = 64
"""Candidates between two writes of that note; it is written at the end of a session, too."""
LATEST = 30
"""How many events are kept in words."""
LONGEST = 300
"""How many characters of an event are kept."""


class EventLog:
    """The campaign's events, over all its drivers."""

    def __init__(self, study: Study, listener: Listener) -> None:
        """Continue the log that the study holds; `listener` is told each event in words."""
        self._study = study
        self._listener = listener
        known = study.note(NOTE) or {}
        self._counts = Counter(known.get("counts", {}))
        self._latest: list[list[str]] = known.get("latest", [])
        self._facts: Mapping[str, int] = study.note(ENGINE) or {}
        self._reuse = Counter(study.note(REUSE) or {})
        self._unsaved = 0

    def write(self, events: Sequence[Event], workers: int) -> None:
        """Record events, if there are any, and how many workers there are after them."""
        if not events:
            return
        self._counts.update(event.kind for event in events)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        texts = [event.text[:LONGEST] for event in events if event.text]
        self._latest = [*self._latest, *([now, text] for text in texts)][-LATEST:]
        facts = {"workers": workers, "counts": dict(self._counts), "latest": self._latest}
        self._study.set_note(NOTE, facts)
        for text in texts:
            self._listener.said(text)

    def record_engine_facts(self, facts: Mapping[str, int]) -> None:
        """Record what engines found out about themselves (a batch size): the least of all workers.

        A later run begins with these facts, so that its batches are the same.
        """
        least = {name: min(value, self._facts.get(name, value)) for name, value in facts.items()}
        if least != self._facts:
            self._facts = least
            self._study.set_note(ENGINE, least)

    def count_reuse(self, reuse: Mapping[str, int]) -> None:
        """Add the counts of a candidate that was loaded (`Engine.reuse`)."""
        if reuse:
            self._reuse.update({"candidates": 1, **reuse})
            self._unsaved += 1
        if self._unsaved >= REUSE_EVERY:
            self.save_reuse()

    def save_reuse(self) -> None:
        """Record the counts, those of earlier sessions among them, if there are new ones."""
        if self._unsaved:
            self._study.set_note(REUSE, dict(self._reuse))
            self._unsaved = 0
