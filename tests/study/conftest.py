"""Where the studies under test are kept."""

from __future__ import annotations

import pytest

from evomerge.study.storage_url import sqlite_url


@pytest.fixture
def url(request, servers, tmp_path):
    """Of an empty database: a SQLite file, but where a test is for every database."""
    backend = getattr(request, "param", "sqlite")
    if backend == "sqlite":
        return sqlite_url(tmp_path / "study.db")
    return servers.of(backend).new_database()
