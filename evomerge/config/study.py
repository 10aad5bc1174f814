"""`study`: the storage of the record."""

from __future__ import annotations

from pydantic import Field

from evomerge.config.base import Strict


class StudyConfig(Strict):
    """Every trial is recorded in an Optuna study."""

    storage: str = "sqlite"
    """`sqlite` keeps the study in the run's folder; anything else is an Optuna storage URL.
    Change it where a team looks on.

    Example: `storage: 'postgresql://host/studies'`
    """
    name: str | None = None
    """The study's name; the campaign's, unless given.

    Example: `name: night`
    """
    wait_minutes: float = Field(default=60.0, ge=0)
    """How many minutes a search waits for a database server that has gone away, each time.

    Example: `wait_minutes: 120`
    """
