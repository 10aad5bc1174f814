"""Descents of proposals: chains of jobs in the loop, resumed exactly, paid for and told."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from executors import crash
from running import evaluations, facts, run

from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run

OPTIMIZER = {"kind": "gradient", "steps": 3, "batch": 6, "check": 2}


def save(folder, optimizer=OPTIMIZER, **sections):
    tiny.save_campaign(folder, optimizer=optimizer, **{"budget": {"trials": 3}, **sections})


def own(out):
    return sorted((e for e in evaluations(out) if e.optimizers_own), key=lambda e: e.ask)


def descents(out):
    return [e.descent for e in own(out)]


@pytest.fixture
def whole(tiny_folder):
    """A campaign of descents, and its run's folder."""
    save(tiny_folder)
    return tiny_folder, run(tiny_folder)


def test_what_is_told_is_where_a_descent_ended(whole):
    _, out = whole
    known, *others = own(out)
    assert known.descent is None, "the best that is known is tried as it is"
    assert others[0].descent.origin == "uniform"
    for trial in others:
        record = trial.descent
        assert record.done == "all steps were made"
        assert [step for step, _ in record.checks] == [0, 2, 3]
        np.testing.assert_array_equal(trial.genome, record.best)
        # 30 search items: 6 held back are looked at three times; 6 documents a step, three each
        assert record.items == 3 * 3 * 6 + 3 * 6
        assert trial.cost(30) == record.items + 30
    _, study = open_run(out)
    status = Results(study).status()
    assert status["items_asked"] == 3 * 30 + sum(e.descent.items for e in others)


@pytest.mark.slow
def test_a_campaign_killed_after_every_job_goes_on_as_if_nothing_had_happened(
    whole, monkeypatch, tmp_path
):
    folder, out = whole
    expected = facts(out), descents(out), [e.genome.tobytes() for e in own(out)]
    other = tmp_path / "killed"
    references = [e for e in evaluations(out) if e.role in ("parent", "baseline")]
    before = sum(e.split == "search" for e in references)
    crash(folder, other, monkeypatch, at=before)  # in the first job of the first descent
    for _ in range(8):  # each gets through one job, to the end of the first and on
        crash(folder, other, monkeypatch, at=1)
    run(folder, other)
    assert (facts(other), descents(other), [e.genome.tobytes() for e in own(other)]) == expected


@pytest.mark.slow
def test_a_frank_wolfe_step_of_the_whole_way_ends_at_one_model_in_each_group(tiny_folder):
    optimizer = {"kind": "frank_wolfe", "steps": 1, "check": 1, "batch": 6, "rate": 1.0}
    save(tiny_folder, optimizer, budget={"trials": 3})
    out = run(tiny_folder)
    space = prepare(load_campaign(tiny_folder / "campaign.yaml")).space
    hulls = space.vertices()
    moved = [e for e in own(out) if e.descent and e.descent.best_step == 1]
    assert moved, "no step was better than its start"
    for trial in moved:
        for block in hulls.blocks:
            there = trial.genome[block], np.array(trial.descent.start)[block]
            stands = [*hulls.points[:, block], there[1]]  # it stays where all would be worse
            assert any(np.array_equal(there[0], one) for one in stands)


def test_frank_wolfe_needs_genes_that_are_weights_of_experts(tiny_folder):
    space = {"weights": {"method": "task_arithmetic", "genes": {"lambda": [0, 1]}}}
    save(tiny_folder, {"kind": "frank_wolfe"}, space=space)
    with pytest.raises(InputError, match=r"optimizer\.kind: frank_wolfe steps towards single exp"):
        prepare(load_campaign(tiny_folder / "campaign.yaml"))
