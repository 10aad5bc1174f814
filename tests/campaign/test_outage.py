"""Whole campaigns on real database servers that are killed and started again."""

from __future__ import annotations

import pytest
import tiny
from silent import Silent

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run
from evomerge.workers.local import LocalExecutor

pytestmark = pytest.mark.slow


class Listener(Silent):
    """Starts the server again when it is told that it is away."""

    def __init__(self, server=None):
        self.server, self.lines = server, []

    def said(self, message):
        self.lines.append(message)
        if "is away" in message:
            self.server.start()


def run(folder, out, server=None):
    """Run the folder's campaign, in a new database of the server; what was said."""
    listener = Listener(server)
    overrides = [f"study.storage={server.new_database()}"] if server else []
    config = load_campaign(folder / "campaign.yaml", overrides)
    with open_campaign(prepare(config), out, listener) as campaign:
        campaign.run()
    return listener.lines


def facts(out):
    _, study = open_run(out)
    with study:
        return [
            (e.role, e.name, e.split, e.digest, e.value, e.ask, e.tells, e.scores["pick"].tolist())
            for e in study.evaluations()
        ]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """A folder with the tiny campaign, and what it finds with a SQLite file."""
    folder = tmp_path_factory.mktemp("campaign")
    tiny.save_campaign(folder)
    run(folder, folder / "sqlite")
    return folder, facts(folder / "sqlite")


class Unlucky(LocalExecutor):
    """The server is killed when chosen measurements are done, and before anybody can write them."""

    server, at, done = None, (), 0

    def wait(self):
        outcome = super().wait()
        Unlucky.done += 1
        if Unlucky.done in self.at:
            self.server.kill()
        return outcome


class UnluckyPair(Unlucky):
    """Two places, so that another measurement is under way while the server is away."""

    slots = 2

    def __init__(self, spec):
        super().__init__(spec)
        self._jobs = []

    def submit(self, job):
        self._jobs.append(job)

    def wait(self):
        super().submit(self._jobs.pop(0))
        return super().wait()


@pytest.fixture
def unlucky(monkeypatch):
    """Give campaigns this executor: the server is killed after these measurements."""

    def choose(executor, server, at):
        monkeypatch.setattr(Unlucky, "server", server)
        monkeypatch.setattr(Unlucky, "at", at)
        monkeypatch.setattr(Unlucky, "done", 0)
        monkeypatch.setattr("evomerge.campaign.open.build_executor", executor)
        return server

    return choose


@pytest.mark.parametrize("backend", ["postgresql", "mysql"])
def test_a_campaign_whose_database_is_killed_three_times_finds_what_it_would_have_found(
    campaign, servers, backend, tmp_path, unlucky
):
    folder, found = campaign
    # after a parent, a trial, and a finalist on select
    said = run(folder, tmp_path / "run", unlucky(Unlucky, servers.of(backend), (3, 12, 21)))
    assert facts(tmp_path / "run") == found
    assert Unlucky.done == len(found), "nothing is measured twice"
    assert ["is away" in line for line in said] == [True, False] * 3


def test_with_two_workers_nothing_that_was_scored_meanwhile_is_lost_or_repeated(
    campaign, servers, tmp_path, unlucky
):
    folder, _ = campaign
    run(folder, tmp_path / "run", unlucky(UnluckyPair, servers.of("postgresql"), (10, 16)))
    config, study = open_run(tmp_path / "run")
    with study:
        own = [e for e in study.evaluations() if e.optimizers_own]
        assert sorted(e.ask for e in own) == list(range(config.budget.trials))
        assert len({e.digest for e in own}) == len(own)
        assert Unlucky.done == len(study.evaluations())
        assert Results(study).status()["done"]


def test_trackers_and_patience_are_no_part_of_what_a_study_is(campaign, tmp_path):
    """A study begun without them goes on with them."""
    folder, found = campaign
    path = folder / "campaign.yaml"
    out = tmp_path / "run"
    config = load_campaign(path, ["budget.trials=5"])
    with open_campaign(prepare(config), out, Listener()) as campaign:
        campaign.run()
    tracked = ["trackers=[tensorboard]", "notify=[{command: 'true'}]", "study.wait_minutes=1"]
    with open_campaign(prepare(load_campaign(path, tracked)), out, Listener()) as campaign:
        campaign.run()
    assert [f for f in facts(out) if f[0] == "search"] == [f for f in found if f[0] == "search"]
    assert list((out / "tensorboard").glob("events.*"))


def test_others_who_read_the_study_find_no_password_and_no_address(campaign, servers, tmp_path):
    folder, _ = campaign
    url = servers.of("postgresql").new_database().replace("evomerge@", "evomerge:secret@")
    overrides = [f"study.storage={url}", "budget.trials=1", "notify=[{webhook: 'http://0/secret'}]"]
    config = load_campaign(folder / "campaign.yaml", overrides)
    out = tmp_path / "run"
    with open_campaign(prepare(config), out, Listener()):
        pass
    config, study = open_run(out)
    with study:
        assert "secret" not in str(study.campaign)
        assert study.campaign["study"]["storage"].startswith("postgresql+psycopg://evomerge:***@")
    assert "secret" in config.study.storage
