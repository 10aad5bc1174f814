from __future__ import annotations

import pytest
import tiny
from running import run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of the tiny campaign."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.save_campaign(folder)
    return run(folder)
