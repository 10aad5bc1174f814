"""Sessions: when the driver ran, and on how many workers; the time left is computed from them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from evomerge.study.study import Study

NOTE = "sessions"
KEPT = 300
"""Only the latest sessions are kept, so that the note stays short."""


@dataclass(frozen=True)
class Session:
    """One run of the driver over a study.

    Attributes:
        started: when its workers were ready (UTC).
        workers: number of workers.
        until: when it was to stop asking (UTC), if there was a deadline.
    """

    started: datetime
    workers: int
    until: datetime | None = None


def begin_session(study: Study, workers: int, deadline: float | None) -> None:
    """Record that the driver begins; `deadline`: in seconds of the monotonic clock, or None.

    Raises:
        InputError: the storage cannot be written.
    """
    now = datetime.now(UTC)
    left = None if deadline is None else timedelta(seconds=deadline - time.monotonic())
    entry = {
        "started": now.isoformat(timespec="milliseconds"),
        "workers": workers,
        "until": left and (now + left).isoformat(timespec="seconds"),
    }
    study.set_note(NOTE, [*(study.note(NOTE) or []), entry][-KEPT:])


def sessions(study: Study) -> list[Session]:
    """Return the driver's sessions, the earliest first; none in studies that recorded none."""
    return [
        Session(
            started=datetime.fromisoformat(entry["started"]),
            workers=entry["workers"],
            until=entry["until"] and datetime.fromisoformat(entry["until"]),
        )
        for entry in study.note(NOTE) or []
    ]
