"""A campaign of which only the configs are here."""

from __future__ import annotations

import pytest
from configs import save_configs, small_config

from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign


@pytest.fixture
def unread(tmp_path):
    """The setup of a campaign of small configs."""
    return prepare(load_campaign(save_configs(tmp_path, small_config())), unread=True)
