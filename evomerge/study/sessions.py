"""When the driver ran, and on how many workers: utilisation and the time left rest on it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from evomerge.study.study import Study

NOTE = "sessions"
KEPT = 300
"""Of more sessions the earliest are forgotten, so that the note stays short."""


@dataclass(frozen=True)
class Session:
    """One run of the driver over a study.

    Attributes:
        started: when its workers stood (UTC).
        workers: how many there were.
        until: when it was to stop asking, if it was told (UTC).
    """

    started: datetime
    workers: int
    until: datetime | None = None


def begin_session(study: Study, workers: int, deadline: float | None) -> None:
    """Note that the driver begins; `deadline` is on the monotonic clock.

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
    """The driver's sessions, the earliest first; none in studies that did not note them."""
    return [
        Session(
            started=datetime.fromisoformat(entry["started"]),
            workers=entry["workers"],
            until=entry["until"] and datetime.fromisoformat(entry["until"]),
        )
        for entry in study.note(NOTE) or []
    ]
