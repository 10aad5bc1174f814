"""What a campaign tells its optimizer before the first ask: parents and baselines."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
from executors import crash
from running import evaluations, facts, run
from silent import Silent

from evomerge.campaign.open import open_study
from evomerge.campaign.recorder import Recorder
from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.study.run_folder import open_run, study_to_mend
from evomerge.study.study import BEGUN_WITH

METRIC = '''
"""How near the model's head is to the base's: no merge is better than the base."""

from pathlib import Path

from safetensors.torch import load_file

HEAD = load_file(Path(__file__).parent / "models" / "base" / "model.safetensors")["lm_head.weight"]


def nearness(model, tokenizer, items):
    away = (model.lm_head.weight.detach().float() - HEAD.float()).abs().mean(1)
    return [-float(away[item["row"]]) for item in items]
'''
FITNESS = {
    "tasks": [{"callable": "metrics:nearness", "documents": "rows.jsonl"}],
    "splits": {"search": 0.5, "select": 0.2, "test": 0.3},
    "select_top": 1,
}
OPTIMIZERS = ["cma", "m2n2", "de", "pso", "optuna:TPESampler", "random"]


@pytest.fixture
def folder(tiny_folder):
    (tiny_folder / "metrics.py").write_text(METRIC)
    rows = "".join(json.dumps({"row": row}) + "\n" for row in range(20))
    (tiny_folder / "rows.jsonl").write_text(rows)
    tiny.save_campaign(
        tiny_folder, fitness=FITNESS, optimizer={"kind": "cma"}, budget={"trials": 6}
    )
    return tiny_folder


@pytest.mark.parametrize(
    "kind", [k if k == "cma" else pytest.param(k, marks=pytest.mark.slow) for k in OPTIMIZERS]
)
def test_no_search_ends_below_the_best_parent(folder, kind):
    out = run(folder, overrides=[f"optimizer.kind={kind}"])
    found = evaluations(out)
    base = next(e for e in found if e.name == "base" and e.split == "search")
    assert base.value == max(e.value for e in found if e.role == "parent" and e.split == "search")
    own = [e for e in found if e.optimizers_own]
    assert max(e.value for e in own) == base.value
    _, study = open_run(out)
    known = study.known_at_start()
    assert base.digest in known
    assert any((e.genome == np.array(known[base.digest])).all() for e in own)


def test_a_plain_optimizer_is_told_nothing(folder):
    out = run(folder, overrides=["optimizer.plain=true", "budget.trials=3"])
    _, study = open_run(out)
    assert study.known_at_start() is None
    best = max(e.value for e in evaluations(out) if e.optimizers_own)
    assert best < next(e.value for e in evaluations(out) if e.name == "base")


def test_a_search_that_was_killed_begins_with_what_it_was_first_told(folder, monkeypatch, tmp_path):
    sections = {"fitness": FITNESS, "optimizer": {"kind": "cma", "population": 4}}
    tiny.save_campaign(folder, budget={"trials": 7}, **sections)
    expected = facts(run(folder))
    other = tmp_path / "killed"
    for jobs in (7 + 1, 2):
        crash(folder, other, monkeypatch, at=jobs)
    run(folder, other)
    assert facts(other) == expected


def test_a_study_that_knows_of_no_diagonal_goes_on_with_the_full_covariance(folder, monkeypatch):
    monkeypatch.setattr("evomerge.search.optimizers.cma.SEPARABLE_ABOVE", 1)
    weights = {"method": ["linear", "task_arithmetic"], "genes": {"weight": [0, 1]}}
    sections = {"fitness": FITNESS, "space": {"weights": weights}, "budget": {"trials": 2}}
    tiny.save_campaign(folder, optimizer={"kind": "cma"}, **sections)
    out = run(folder)

    def remark():
        setup = prepare(load_campaign(folder / "campaign.yaml"))
        with open_study(setup, out, Silent()) as study:
            Recorder(setup, study, Silent())
            return setup.optimizer.remark()

    assert "diagonal covariance" in remark()
    with study_to_mend(out) as study:
        assert study.note(BEGUN_WITH) == {"covariance": "diagonal"}
        study.set_note(BEGUN_WITH, {})
    assert "full covariance" in remark()
