"""What happened to workers and machines: how often, and the latest in words.

Kept as one note of the study, of a bounded size, however long the campaign and however bad its
luck.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from evomerge.campaign.listener import Listener
from evomerge.study.study import Study
from evomerge.workers.job import Event

NOTE = "events"
LATEST = 30
"""So many events are kept in words."""
LONGEST = 300
"""Characters of one."""


class EventLog:
    """The campaign's events, of all its drivers."""

    def __init__(self, study: Study, listener: Listener) -> None:
        """Go on in what the study holds; `listener` is told each in words."""
        self._study = study
        self._listener = listener
        known = study.note(NOTE) or {}
        self._counts = Counter(known.get("counts", {}))
        self._latest: list[list[str]] = known.get("latest", [])

    def write(self, events: Sequence[Event], workers: int) -> None:
        """Record events, if there are any, and how many workers stand after them."""
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
