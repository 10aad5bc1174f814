"""What every test shares: no network, and a small campaign to work on."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("same_every_run", derandomize=True)
settings.load_profile("same_every_run")

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' processes share the cores
os.environ.setdefault("RAY_worker_niceness", "0")  # else Ray's workers get what others leave
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and rich then ignores later changes
sys.path.insert(0, str(Path(__file__).parent / "helpers"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Checkpoints made of recipes stay out of the user's cache."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def _tiny_folder(tmp_path_factory):
    import tiny

    folder = tmp_path_factory.mktemp("tiny")
    tiny.save_campaign(folder)
    return folder


@pytest.fixture
def tiny_folder(_tiny_folder, tmp_path):
    """A private copy of a folder with models/, tasks/ and campaign.yaml."""
    folder = tmp_path / "tiny"
    shutil.copytree(_tiny_folder, folder)
    return folder


@pytest.fixture(scope="session")
def servers():
    """`servers.of("postgresql")` is a real server of the test run; skips if it isn't installed."""
    from servers import Servers

    running = Servers()
    yield running
    running.close()


@pytest.fixture
def server():
    """An OpenAI-compatible server of a checkpoint, on loopback."""
    from serving import Server

    server = Server()
    yield server
    server.shutdown()
    server.server_close()
