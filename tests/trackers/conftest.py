"""A study whose evaluations are told to the trackers under test."""

from __future__ import annotations

import pytest
from told import Told, few_resamples_and_time_enough


@pytest.fixture(autouse=True)
def _few_resamples_and_time_enough(monkeypatch):
    few_resamples_and_time_enough(monkeypatch)


@pytest.fixture
def study(tmp_path):
    return Told(tmp_path / "run")
