"""Functions of one's own beside lm-eval's tasks: one objective, killed and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny
from silent import Silent

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.report.pages.report import write_report
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run

METRIC = '''
"""How far the model's next word is from the one that is wanted, in words."""

import os
import signal
from pathlib import Path

import torch

HERE = Path(__file__).parent


def closeness(model, tokenizer, items):
    if (HERE / "deadly").exists() and len(items) == int((HERE / "deadly").read_text()):
        os.kill(os.getpid(), signal.SIGKILL)
    tokens = torch.tensor([tokenizer.encode(item["text"]) for item in items])
    wanted = torch.tensor([tokenizer.encode(item["word"])[0] for item in items])
    return -(model(tokens).logits[:, -1].argmax(-1) - wanted).abs() / 64
'''
FITNESS = {
    "include_path": "tasks",
    "tasks": [
        {"task": "pick", "num_fewshot": 0},
        {"callable": "metrics:closeness", "documents": "closeness.jsonl", "weight": 2.0},
    ],
    "splits": {"search": 0.5, "select": 0.2, "test": 0.3},
    "rungs": [20, "all"],
    "race": {"keep": 0.3},
    "select_top": 2,
}


@pytest.fixture
def folder(tiny_folder):
    (tiny_folder / "metrics.py").write_text(METRIC)
    lines = [{"text": f"w{i} w{3 * i % 60}", "word": f"w{7 * i % 60}"} for i in range(40)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tiny_folder / "closeness.jsonl").write_text(text)
    tiny.save_campaign(tiny_folder, fitness=FITNESS)
    return tiny_folder


def run(folder, out="run", trials=8):
    config = load_campaign(folder / "campaign.yaml", [f"budget.trials={trials}"])
    with open_campaign(prepare(config), folder / out, Silent()) as campaign:
        campaign.run()
    return open_run(folder / out)[1]


def facts(study):
    return [
        (
            *(e.role, e.name, e.split, e.digest, e.value, e.estimated, e.ask, e.tells),
            {task: values.tobytes() for task, values in e.scores.items()},
        )
        for e in study.evaluations()
    ]


@pytest.mark.slow
def test_a_campaign_over_both_killed_and_resumed_is_the_uninterrupted_one(folder):
    whole = run(folder, "whole")
    sources = prepare(load_campaign(folder / "campaign.yaml")).items["search"]
    assert {task: len(ids) for task, ids in sources.items()} == {"pick": 30, "closeness": 20}
    command = [sys.executable, "-m", "evomerge", "search", "campaign.yaml", "--out", "run"]
    command += ["--trials", "8"]
    first = whole.rungs()["counts"][0]["closeness"]
    # Killed while a parent is scored on the whole split, and when a trial has climbed to the top.
    for deadly in (20, 20 - first):
        (folder / "deadly").write_text(str(deadly))
        died = subprocess.run(command, cwd=folder, capture_output=True)
        assert died.returncode == -signal.SIGKILL
    (folder / "deadly").unlink()
    assert facts(run(folder)) == facts(whole)


def test_the_objective_is_over_both_and_so_are_table_and_report(folder):
    study = run(folder)
    trials = [e for e in study.evaluations() if e.optimizers_own and e.measured]
    for trial in trials:
        means = {task: float(np.mean(values)) for task, values in trial.scores.items()}
        expected = (means["pick"] + 2 * means["closeness"]) / 3
        assert trial.value == pytest.approx(expected)
    summary = Results(study).best()
    assert set(summary["scores"]["test"]["tasks"]) == {"pick", "closeness"}
    assert Results(study).status()["done"]
    write_report(study, folder / "report.html")
    assert "closeness" in (folder / "report.html").read_text()


def test_paths_are_taken_from_the_campaigns_folder_and_may_move(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_campaign(folder / "campaign.yaml")
    own = config.fitness.tasks[1]
    assert (own.module, own.function) == (str(folder / "metrics.py"), "closeness")
    assert own.documents == str(folder / "closeness.jsonl")
    identity = prepare(config).identity
    moved = folder.rename(tmp_path / "moved")
    assert prepare(load_campaign(moved / "campaign.yaml")).identity == identity
    assert identity["fitness"]["tasks"]["closeness"] == {
        "callable": "closeness",
        "task": "closeness",
        "weight": 2.0,
        "higher_is_better": True,
    }
    assert str(tmp_path) not in json.dumps(identity["fitness"])


@pytest.mark.slow
def test_other_code_is_another_campaign(folder):
    run(folder, trials=2)
    (folder / "metrics.py").write_text(METRIC.replace("/ 64", "/ 65"))
    with pytest.raises(InputError, match=r"fitness.prompts.closeness"):
        run(folder, trials=3)


def test_documents_that_a_task_has_too_are_seen_in_one_split(folder):
    lines = (folder / "tasks" / "pick.jsonl").read_text().splitlines()[:40]
    (folder / "closeness.jsonl").write_text("\n".join(lines))
    setup = prepare(load_campaign(folder / "campaign.yaml"))
    splits = {split: {*tasks["pick"]} for split, tasks in setup.items.items()}
    for split, tasks in setup.items.items():
        assert tasks["closeness"]
        assert {*tasks["closeness"]} <= splits[split]
    assert any("'closeness' share 40 documents" in note for note in setup.models.notes)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"document": "x"}, "document: unknown key; did you mean 'documents'?"),
        ({"callable": "metrics.closeness"}, "callable: write it as module:function"),
        ({"documents": None}, "documents: expected text"),
        ({"metric": "acc"}, "metric: unknown key"),
        ({"weight": 0}, "weight: expected more than 0"),
    ],
)
def test_what_is_wrong_with_an_entry_is_named(entry, said, folder):
    own = {**FITNESS["tasks"][1], **entry}
    tiny.save_campaign(folder, fitness={**FITNESS, "tasks": [own]})
    with pytest.raises(InputError) as caught:
        load_campaign(folder / "campaign.yaml")
    assert f"fitness.tasks.0.{said}" in str(caught.value)


def test_an_unknown_key_of_lm_evals_task_is_named_as_before(folder):
    tiny.save_campaign(folder, fitness={**FITNESS, "tasks": [{"task": "pick", "metrc": "acc"}]})
    with pytest.raises(InputError, match=r"tasks.0.metrc: unknown key; did you mean 'metric'"):
        load_campaign(folder / "campaign.yaml")
