"""`study`: the storage of the record."""

from __future__ import annotations

from pydantic import Field

from evomerge.config.base import Strict


class StudyConfig(Strict):
    """`sqlite` keeps the study in the run's folder; anything else is an Optuna storage URL.

    A database server that goes away is waited for, `wait_minutes` each time.
    """

    storage: str = "sqlite"
    name: str | None = None
    wait_minutes: float = Field(default=60.0, ge=0)
