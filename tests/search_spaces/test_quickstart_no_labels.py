"""The quickstart without labels: a merge that says what its experts say can do what neither can."""

from __future__ import annotations

import shutil

import pytest
from running import run

from evomerge.cli.quickstart import quickstart_files
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run


@pytest.mark.slow
def test_experts_teach_together_what_neither_knows(tmp_path):
    folder = tmp_path / "quickstart"
    shutil.copytree(quickstart_files(), folder)
    (folder / "no_labels.yaml").replace(folder / "campaign.yaml")
    given = [
        "workers.isolated=false",
        "budget.trials=1",
        "fitness.audit.tasks=[{task: listops_eo}]",
    ]
    _, study = open_run(run(folder, tmp_path / "run", given))
    found = Results(study).best()["audit"]["forgetting"]["listops_eo"]
    assert found["winner"] > 0.9
    assert all(parent["mean"] < 0.6 for parent in found["parents"].values())
