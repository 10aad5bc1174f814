"""Objectives that look at the parents, constraints and fronts, through whole campaigns."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
from silent import Silent
from typer.testing import CliRunner

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.cli import app
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.judging.pareto import front as front_of
from evomerge.report.pages.report import report_page
from evomerge.results.results import Results
from evomerge.study.judged import judge_on, searched
from evomerge.study.run_folder import open_run
from evomerge.workers.worker import Worker

TASKS = [{"task": "pick", "num_fewshot": 0}, {"task": "choose", "num_fewshot": 0}]
FLIPS = {"negative_flips": {"against": "math", "at_most": 0.06}}
PARETO = {"kind": "pareto", "of": ["pick", "choose"]}


def fitness(**changes):
    return {"include_path": "tasks", "tasks": TASKS, "select_top": 3, **changes}


def run(folder, out="run"):
    """Run the folder's campaign; returns its study."""
    config = load_campaign(folder / "campaign.yaml")
    with open_campaign(prepare(config), folder / out, Silent()) as campaign:
        campaign.run()
    return open_run(folder / out)[1]


def prepared(folder, plain=False, **changes):
    tiny.save_campaign(folder)
    tiny.save_task(folder / "tasks", "choose", task_seed=1)
    optimizer = {"kind": "cma", "plain": plain}
    tiny.save_campaign(
        folder, fitness=fitness(**changes), budget={"trials": 8}, optimizer=optimizer
    )
    return folder


@pytest.fixture(scope="module")
def normalized(tmp_path_factory):
    """Normalized, with a constraint that some of the trials break."""
    folder = tmp_path_factory.mktemp("normalized")
    prepared(folder, plain=True, objective="normalized", constraints=[FLIPS])
    return folder, run(folder)


@pytest.fixture(scope="module")
def pareto(tmp_path_factory):
    folder = prepared(tmp_path_factory.mktemp("pareto"), objective=PARETO)
    return folder, run(folder)


def facts(study):
    return [(e.role, e.split, e.digest, e.value, e.ask, e.tells) for e in study.evaluations()]


def items_of(study, name, split):
    found = [e for e in study.evaluations() if e.name == name and e.split == split]
    return found[0].scores


def test_normalized_values_rest_on_the_parents_of_their_own_split(normalized):
    _, study = normalized
    for split in ("search", "select", "test"):
        parents = [items_of(study, name, split) for name in ("base", "math", "lang")]
        for e in study.evaluations():
            if e.split == split and e.role != "parent":
                shares = [
                    e.scores[task].mean() / max(p[task].mean() for p in parents)
                    for task in ("pick", "choose")
                ]
                assert e.value == pytest.approx(np.mean(shares))


@pytest.mark.slow
def test_a_resumed_campaign_judges_and_asks_as_if_it_had_not_stopped(
    normalized, tmp_path, monkeypatch
):
    _, whole = normalized
    prepared(tmp_path, plain=True, objective="normalized", constraints=[FLIPS])
    measure, left = Worker.measure, [0]

    def interrupted(self, recipe, split):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measure(self, recipe, split)

    monkeypatch.setattr(Worker, "measure", interrupted)
    for left[0] in (2, 3, 5, 4, 9):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    left[0] = 1000
    assert facts(run(tmp_path)) == facts(whole)


def test_the_winner_keeps_the_constraints_where_a_finalist_does(normalized):
    _, study = normalized
    found = study.evaluations()
    on_select = judge_on(Results(study).judge, found, "select")
    finalists = [e for e in found if e.split == "select" and e.role == "finalist"]
    kept = [e for e in finalists if on_select.scores(e.scores).violation == 0]
    winner = Results(study).best()
    assert winner["digest"] in [e.digest for e in kept or finalists]
    for split in ("search", "select", "test"):
        (check,) = winner["constraints"][split]
        mine = next(e for e in found if (e.digest, e.split) == (winner["digest"], split))
        reference = items_of(study, "math", split)
        flips = np.concatenate([reference[t] > mine.scores[t] for t in mine.scores]).mean()
        assert check["measured"] == pytest.approx(flips)
        assert check["holds"] == (flips <= 0.06)


def test_optuna_does_not_call_a_trial_the_best_that_breaks_a_constraint(normalized):
    import optuna

    _, study = normalized
    own = searched(Results(study).judge, study.evaluations())
    broken = {one.trial.number for one in own if one.scores.violation > 0}
    assert 0 < len(broken) < len(own)
    loaded = optuna.load_study(study_name=study.name, storage=study._url)
    kept = [one for one in own if one.scores.violation == 0]
    assert loaded.best_value == max(one.scores.value for one in kept)


def test_best_gives_the_front_and_picks_from_it(pareto):
    folder, study = pareto
    result = CliRunner().invoke(app, ["best", str(folder / "run"), "--json"])
    found = json.loads(result.stdout)
    front = found["front"]
    own = [e for e in study.evaluations() if e.optimizers_own]
    points = np.array([[e.scores[t].mean() for t in ("pick", "choose")] for e in own])
    expected = {e.digest for e, kept in zip(own, front_of(points), strict=True) if kept}
    assert {point["digest"] for point in front} == expected
    assert found["digest"] in expected
    measured = [point for point in front if point["select"]]
    assert len(measured) == min(3, len(front))
    table = CliRunner().invoke(app, ["best", str(folder / "run")], env={"COLUMNS": "160"}).stdout
    assert "the front on search" in table


def test_the_report_shows_the_front_and_the_constraints(pareto, normalized):
    assert '"on select"' in report_page(pareto[1])
    assert "Constraint " in report_page(normalized[1])


def test_an_optimizer_of_one_goal_is_refused_before_any_work(tmp_path):
    prepared(tmp_path, objective=PARETO)
    sampler = "optimizer={kind: optuna:CmaEsSampler}"
    config = load_campaign(tmp_path / "campaign.yaml", [sampler])
    with pytest.raises(InputError, match="takes one objective, but the campaign has 2"):
        prepare(config)
    config = load_campaign(tmp_path / "campaign.yaml", [sampler, "fitness.objective=mean"])
    assert prepare(config).judge.goals == 1


def test_a_campaign_without_goals_has_no_front(normalized):
    assert "front" not in Results(normalized[1]).best()
