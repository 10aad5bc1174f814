"""Results of an earlier run of the same models and documents inform the screening."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from executors import crash
from running import evaluations, facts, run
from silent import Silent

from evomerge.campaign.earlier_results import earlier_results
from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.study.run_folder import open_run

SCREENED = {"kind": "cma", "population": 4, "screen": 4}


class Ear(Silent):
    """A listener that remembers what is said."""

    def __init__(self):
        self.lines = []

    def said(self, message):
        self.lines.append(message)


def taken_over(folder, **sections):
    """What the next campaign would take over, and what it says of it."""
    start = {"run": str(folder / "run")}
    tiny.save_campaign(folder, initial=[start], optimizer=SCREENED, **sections)
    setup, ear = prepare(load_campaign(folder / "campaign.yaml")), Ear()
    return earlier_results(setup, setup.judge, ear), ear.lines


@pytest.fixture
def earlier(tiny_folder):
    """A folder with a run of a few trials."""
    tiny.save_campaign(tiny_folder, budget={"trials": 4}, optimizer={"kind": "random"})
    run(tiny_folder)
    return tiny_folder


@pytest.mark.slow
def test_what_would_be_the_same_here_is_taken_over_and_nothing_else(earlier):
    found, said = taken_over(earlier)
    own = [e for e in evaluations(earlier / "run") if e.optimizers_own]
    assert [one.scores.value for one in found] == [e.value for e in own]
    for one, trial in zip(found, own, strict=True):
        np.testing.assert_array_equal(one.genome, trial.genome)
    assert said == [f"initial[0]: {len(own)} of its results inform the screening from the start"]
    # 1. other documents, prompts, or bounds of genes
    fitness = tiny.campaign_data()["fitness"]
    asked = {"task": "pick", "num_fewshot": 0, "system_instruction": "w1 w2"}
    others = {
        "documents": {"fitness": {**fitness, "splits": {"search": 20, "select": 20, "test": 20}}},
        "prompts": {"fitness": {**fitness, "tasks": [asked]}},
        "recipes": {
            "space": {"weights": {"method": "task_arithmetic", "genes": {"weight": [0, 1]}}}
        },
    }
    for what, sections in others.items():
        found, [said] = taken_over(earlier, **sections)
        assert found == [], what
        assert what in said
    # 2. the weights of tasks may differ, for items are judged anew
    tasks = [{"task": "pick", "num_fewshot": 0, "weight": 2.0}]
    assert len(taken_over(earlier, fitness={**fitness, "tasks": tasks})[0]) == len(own)


@pytest.mark.slow
def test_a_screened_search_goes_on_after_a_kill_with_what_it_took_over(
    earlier, monkeypatch, tmp_path
):
    taken_over(earlier, budget={"trials": 6})
    whole = run(earlier, tmp_path / "whole")
    assert len(open_run(whole)[1].earlier()) == 4
    killed = tmp_path / "killed"
    before = len([e for e in evaluations(whole) if not e.optimizers_own and e.split == "search"])
    crash(earlier, killed, monkeypatch, at=before + 4)
    run(earlier, killed)
    assert facts(killed) == facts(whole)
    assert open_run(killed)[1].earlier() == open_run(whole)[1].earlier()
