"""Studies with invented scores."""

import pytest
from invented import Invented


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A campaign that is done; its third and fifth trials failed. Only to be read."""
    return done(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def extensible(tmp_path):
    """The same, to be added to."""
    return done(tmp_path / "run")


@pytest.fixture(scope="session")
def losing(tmp_path_factory):
    """A campaign that is done, and whose best merge is far behind every parent. Only to be read."""
    run = Invented(tmp_path_factory.mktemp("losing"), budget=2)
    return run.references().search([0.3, 0.2]).finish(0.05)


@pytest.fixture(scope="session")
def midway(tmp_path_factory):
    """A campaign in the middle of its search. Only to be read."""
    return Invented(tmp_path_factory.mktemp("midway")).references().search([0.3, 0.8, 0.6])


def done(folder):
    failures = {2: "out of memory", 4: "out of memory"}
    run = Invented(folder, budget=6)
    return run.references().search([0.3, 0.6, 0, 0.8, 0, 0.7], failures).finish()
