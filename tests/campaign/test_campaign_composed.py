"""A campaign with documents of two tasks in one prompt, from file to report."""

from __future__ import annotations

import pytest
import tiny
from running import facts, run

from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.report.tables import remarks
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run

TASKS = [
    {"task": "pick", "num_fewshot": 0},
    {"task": "pock", "num_fewshot": 0},
    {"compose": ["pick", "pock"], "weight": 2},
]


@pytest.fixture
def folder(tmp_path):
    splits = {"search": 0.4, "select": 0.2, "test": 0.4}
    fitness = {"include_path": "tasks", "tasks": TASKS, "splits": splits, "select_top": 1}
    tiny.save_campaign(tmp_path, fitness=fitness, budget={"trials": 2})
    tiny.save_task(tmp_path / "tasks", "pock", items=40, task_seed=1)
    return tmp_path


def test_joined_documents_count_once_and_lie_in_their_parts_splits(folder):
    setup = prepare(load_campaign(folder / "campaign.yaml"))
    assert setup.sizes("search") == {"pick": 24, "pock": 16, "pick+pock": 16}
    assert setup.measures == {"pick+pock.pick": "pick+pock", "pick+pock.pock": "pick+pock"}
    [said] = [note for note in setup.models.notes if "split" in note]
    assert said.startswith("pick+pock joins documents of pick and pock: each lies in one split")
    marks = {t.task: dict(zip(t.ids, t.marks, strict=True)) for t in setup.tasks}
    for tasks in setup.items.values():
        there = {*tasks["pick"], *tasks["pock"]}
        for item in tasks["pick+pock"]:
            assert len(there.intersection(marks["pick+pock"][item])) == 2


@pytest.mark.slow
def test_a_campaign_that_composes_runs_resumes_and_reports(folder):
    whole = run(folder)
    cut = run(folder, folder / "cut", ["budget.trials=1"])
    assert facts(run(folder, folder / "cut", ["budget.trials=2"]))[:8] == facts(whole)[:8]
    assert cut == folder / "cut"
    best = Results(open_run(whole)[1]).best()
    [found] = best["composites"]
    assert (found["task"], found["by"]) == ("pick+pock", "alone")
    assert found["composite"] <= min(found["inside"].values())
    assert best["scores"]["test"]["tasks"]["pick+pock"]["n"] == 16
    assert any(line.startswith("pick+pock: all parts right on ") for line in remarks(best))
