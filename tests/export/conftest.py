"""A finished run that the tests of exports share."""

from __future__ import annotations

import pytest
import tiny
from typer.testing import CliRunner

from evomerge.cli import app


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with a campaign and its run, in `run/`: m2n2 on two tasks, towards a front."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.save_family(folder / "models")
    tiny.save_task(folder / "tasks")
    tiny.save_task(folder / "tasks", "other", task_seed=1)
    fitness = {
        **tiny.campaign_data()["fitness"],
        "tasks": [{"task": "pick", "num_fewshot": 0}, {"task": "other", "num_fewshot": 0}],
        "objective": {"kind": "pareto", "of": ["pick", "other"]},
    }
    campaign = tiny.save_campaign(
        folder, fitness=fitness, optimizer={"kind": "nsga2", "population": 4}
    )
    result = CliRunner().invoke(app, ["search", str(campaign), "--out", str(folder / "run")])
    assert result.exit_code == 0, result.output
    return folder
