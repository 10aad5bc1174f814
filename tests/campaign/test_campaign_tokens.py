"""Accuracy against response tokens: a whole campaign over generated answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
import yaml
from silent import Silent
from typer.testing import CliRunner

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.cli import app
from evomerge.config import load_campaign
from evomerge.judging.pareto import front as front_of
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run
from evomerge.workers.worker import Worker

TOKENS = "say.response_tokens"
FITNESS = {
    "include_path": "tasks",
    "tasks": [
        {"task": "pick", "num_fewshot": 0},
        {"task": "say", "metric": "exact_match", "measures": ["response_tokens"]},
    ],
    "objective": {
        "kind": "pareto",
        "of": ["pick", TOKENS],
        "prefer": {"best": "pick", "where": {TOKENS: {"at_most": 6}}},
    },
    "constraints": [{"not_below": {"task": TOKENS, "model": "math", "by": 3}}],
    "select_top": 2,
}


def run(folder):
    config = load_campaign(folder / "campaign.yaml")
    with open_campaign(prepare(config), folder / "run", Silent()) as campaign:
        campaign.run()
    return open_run(folder / "run")[1]


def prepared(folder):
    """The tiny campaign with a generation task over the prompts of `pick`."""
    tiny.save_campaign(folder, fitness=FITNESS, optimizer={"kind": "nsga2"}, budget={"trials": 6})
    documents = [json.loads(line) for line in (folder / "tasks" / "pick.jsonl").open()]
    for document in documents:
        document["word"] = document["options"][document["answer"]].split()[0]
    (folder / "tasks" / "say.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    task = tiny.generation_task("say", "{{word}}")
    (folder / "tasks" / "say.yaml").write_text(yaml.safe_dump(task))
    return folder


def facts(study):
    return [
        (e.role, e.split, e.digest, e.value, {t: v.tobytes() for t, v in e.scores.items()})
        for e in study.evaluations()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = prepared(tmp_path_factory.mktemp("whole"))
    return folder, run(folder)


def test_the_front_trades_accuracy_for_tokens(whole):
    _, study = whole
    own = [e for e in study.evaluations() if e.optimizers_own]
    points = np.array([[e.scores["pick"].mean(), -e.scores[TOKENS].mean()] for e in own])
    assert len(set(points[:, 1])) > 3
    found = Results(study).best()
    kept = {e.digest for e, on_front in zip(own, front_of(points), strict=True) if on_front}
    assert {point["digest"] for point in found["front"]} <= kept
    assert found["digest"] in kept
    winner = next(e for e in own if e.digest == found["digest"])
    search = found["scores"]["search"]["tasks"]
    assert search[TOKENS]["mean"] == pytest.approx(winner.scores[TOKENS].mean())
    assert search[TOKENS]["n"] == len(winner.scores["say"])


def test_a_token_constraint_is_measured_in_tokens(whole):
    _, study = whole
    found = Results(study).best()
    evaluations = study.evaluations()
    math = next(e for e in evaluations if e.name == "math" and e.split == "search")
    ours = next(e for e in evaluations if e.digest == found["digest"] and e.split == "search")
    (check,) = found["constraints"]["search"]
    assert check["limit"] == 3
    assert check["measured"] == pytest.approx(
        ours.scores[TOKENS].mean() - math.scores[TOKENS].mean()
    )


def test_measures_are_not_counted_as_items(whole):
    _, study = whole
    items = study.items()["search"]
    assert items[TOKENS] == items["say"]
    scored = [e for e in study.evaluations() if e.seconds]
    counted = sum(len(e.scores["pick"]) + len(e.scores["say"]) for e in scored)
    assert Results(study).status()["item_evaluations"] == counted


def test_the_answers_and_their_lengths_survive_being_interrupted(whole, tmp_path, monkeypatch):
    prepared(tmp_path)
    measure, left = Worker.measure, [0]

    def interrupted(self, recipe, split):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measure(self, recipe, split)

    monkeypatch.setattr(Worker, "measure", interrupted)
    for left[0] in (3, 9, 5):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    left[0] = 1000
    assert facts(run(tmp_path)) == facts(whole[1])


def test_the_table_shows_the_tokens(whole):
    folder, _ = whole
    shown = CliRunner().invoke(app, ["best", str(folder / "run")], env={"COLUMNS": "160"}).stdout
    assert TOKENS in shown
