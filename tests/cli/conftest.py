"""A finished run for the commands that read one."""

from __future__ import annotations

import pytest
import tiny
from command_line import evomerge


@pytest.fixture(scope="package")
def done(tmp_path_factory):
    """A folder with a finished run of 12 trials in `run/` and its best merge in `out/`."""
    folder = tmp_path_factory.mktemp("done")
    tiny.save_campaign(folder)
    result = evomerge("search", folder / "campaign.yaml", "--out", folder / "run")
    assert "No merge beats `" in result.stdout
    evomerge("export", folder / "run", "--anyway", "--to", folder / "out")
    return folder
