"""A study whose evaluations are told to the trackers under test."""

from __future__ import annotations

import pytest
from told import Told, time_enough


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch):
    time_enough(monkeypatch)


@pytest.fixture
def study(tmp_path):
    return Told(tmp_path / "run")
