"""Campaigns whose proposals a surrogate has chosen: the same after a kill, wherever it comes."""

from __future__ import annotations

import pytest
import tiny
from executors import TwoSlots, crash
from running import evaluations, facts, run

from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.study.run_folder import open_run

TASKS = [{"task": "pick", "num_fewshot": 0}, {"task": "choose", "num_fewshot": 0}]
ONE_GENE_AN_EXPERT = {
    "weights": {
        "method": "task_arithmetic",
        "granularity": "model",
        "genes": {"weight": [0, 1.5]},
    }
}
SCREENED = {
    "optimizer": {"kind": "cma", "population": 4, "screen": 3},
    "budget": {"trials": 18},
}
RUNGS = {"rungs": [6, 15, "all"], "race": {"keep": 0.25, "confidence": 0.5}}
MAPPED = {
    "space": ONE_GENE_AN_EXPERT,
    "optimizer": {"kind": "map", "front": 4},
    "budget": {"trials": 14},
}
REFERENCES = 7
"""Parents and baselines of the tiny campaign, measured first."""


def save(folder, rungs=False, pareto=False, **sections):
    tiny.save_campaign(folder)
    fitness = tiny.campaign_data()["fitness"] | (RUNGS if rungs else {})
    if pareto:
        tiny.save_task(folder / "tasks", "choose", task_seed=1)
        objective = {"kind": "pareto", "of": ["pick", "choose"]}
        fitness |= {"tasks": TASKS, "objective": objective}
    tiny.save_campaign(folder, fitness=fitness, **sections)
    return folder


@pytest.fixture(
    scope="module", params=["screened on rungs", pytest.param("mapped", marks=pytest.mark.slow)]
)
def whole(request, tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    if request.param == "mapped":
        return run(save(folder, pareto=True, **MAPPED))
    return run(save(folder, rungs=True, **SCREENED))


def own(out):
    return [e for e in evaluations(out) if e.optimizers_own]


@pytest.mark.parametrize("trial", [12, pytest.param(8, marks=pytest.mark.slow)])
def test_dying_anywhere_changes_nothing(whole, tmp_path, monkeypatch, trial):
    """The surrogate then proposes what it would have proposed, estimates from rungs among what it
    knows.
    """
    asked = sum(1 + len(e.rungs) for e in own(whole)[:trial] if e.seconds)
    crash(whole.parent, tmp_path / "run", monkeypatch, at=REFERENCES + asked)
    assert len(own(tmp_path / "run")) < len(own(whole))
    out = run(whole.parent, tmp_path / "run")
    assert facts(out) == facts(whole)
    states = [[e.state for e in own(one)] for one in (out, whole)]
    assert states[0] == states[1]


@pytest.mark.slow
def test_with_two_workers_a_death_loses_and_repeats_nothing(whole, tmp_path, monkeypatch):
    left = [REFERENCES + 13]

    class Dying(TwoSlots):
        def wait(self):
            if not left[0]:
                raise SystemError("the driver died")
            left[0] -= 1
            return super().wait()

    monkeypatch.setattr("evomerge.campaign.open.build_executor", Dying)
    with pytest.raises(SystemError):
        run(whole.parent, tmp_path / "run")
    before = facts(tmp_path / "run")
    left[0] = -1  # never again
    out = run(whole.parent, tmp_path / "run")
    assert facts(out)[: len(before)] == before
    assert sorted(e.ask for e in own(out)) == list(range(len(own(whole))))


def test_screening_is_part_of_what_a_study_is(tiny_folder):
    save(tiny_folder, optimizer={"kind": "cma", "population": 4}, budget={"trials": 2})
    out = run(tiny_folder)
    _, study = open_run(out)
    assert study.campaign["optimizer"] == {"kind": "cma", "population": 4}
    with pytest.raises(InputError, match=r"optimizer\.screen"):
        run(tiny_folder, overrides=["optimizer.screen=3"])


def test_map_is_refused_before_any_work_where_the_budget_is_too_small(tiny_folder):
    save(tiny_folder, optimizer={"kind": "map"}, budget={"trials": 12})
    path = tiny_folder / "campaign.yaml"
    with pytest.raises(InputError, match=r"optimizer\.kind: map evaluates \d+ recipes for"):
        prepare(load_campaign(path))
    model = ["space.weights.granularity=model"]
    prepare(load_campaign(path, model))
    with pytest.raises(InputError, match="of 6 trials"):
        prepare(load_campaign(path, [*model, "budget={items: 180}"]))
    prepare(load_campaign(path, [*model, "budget={items: 181}"]))
    with pytest.raises(InputError, match="choices such as 'method'"):
        prepare(load_campaign(path, [*model, "space.weights.method=[linear, task_arithmetic]"]))
