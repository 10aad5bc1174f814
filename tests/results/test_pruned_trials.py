"""A score that was only estimated, and is higher than every measured one: nobody takes it for one.

Every place that shows, exports or compares scores is asked.
"""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import numpy as np
import optuna
import pytest
from invented import COUNTS, Invented
from report_pages import page_of, trace
from rich.console import Console

from evomerge.common.errors import InputError
from evomerge.compare.curves import curve
from evomerge.config import BudgetConfig
from evomerge.export.trial import export_trial
from evomerge.judging.selection import leading
from evomerge.python.progress import ProgressDisplay
from evomerge.report.tables import best_table, status_table
from evomerge.study.best_trials import best_own_params, best_params
from evomerge.study.judged import searched
from evomerge.study.record import Evaluation, RungResult
from evomerge.study.run_folder import open_run, study_place

GUESS = 0.98765
MEASURED = 10


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A run of four trials, the second pruned at a rung; and that trial."""
    run = Invented(tmp_path_factory.mktemp("pruned"), budget=4)
    run.references().search([0.5])
    recipe = run.recipe()
    holes = np.arange(COUNTS["search"]) >= MEASURED
    trial = run.study.add(
        Evaluation(
            split="search",
            digest=recipe.digest,
            recipe=recipe.to_json(),
            value=GUESS,
            se=0.01,
            n=MEASURED * len(run.tasks),
            estimated=True,
            estimates=dict.fromkeys(run.tasks, (GUESS, 0.01)),
            rungs=(RungResult(MEASURED * len(run.tasks), GUESS, 0.01),),
            asked=MEASURED * len(run.tasks),
            scores={t: np.where(holes, np.nan, 1.0) for t in run.tasks},
            params=dict.fromkeys(run.genes, 0.25),
            genome=np.zeros(len(run.genes)),
            ask=1,
            tells=1,
        )
    )
    return run.search([0.7, 0.6]), trial


def printed(table):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_optuna_calls_it_pruned_and_gives_it_no_value(pruned):
    run, trial = pruned
    storage, name = study_place(open_run(run.folder)[0], run.folder)
    study = optuna.load_study(study_name=name, storage=storage)
    found = study.trials[trial.number]
    assert found.state == optuna.trial.TrialState.PRUNED
    assert found.value is None
    assert found.user_attrs["estimated"] is True
    for task in found.user_attrs["tasks"].values():
        assert (task["measured"], task["mean"]) == (MEASURED, 1.0)
    assert study.best_trial.number != trial.number
    assert study.best_value < GUESS
    assert GUESS not in study.trials_dataframe()["value"].tolist()


def test_status_and_best_pass_it_over(pruned):
    run, trial = pruned
    status, best = run.results.status(), run.results.best()
    assert (status["completed"], status["pruned"]) == (3, 1)
    assert status["best"]["trial"] == best["trial"] != trial.number
    assert "pruned at a rung │ 1" in " ".join(printed(status_table(status)).split())
    for text in (str(best), printed(best_table(best)), printed(status_table(status))):
        assert ".988" not in text
        assert str(GUESS) not in text


def test_the_page_draws_it_apart_and_names_it_an_estimate(pruned):
    run, trial = pruned
    page = page_of(run)
    figure = page.figures["figure-progress"]
    rings = trace(figure, "pruned at a rung, estimated (1)")
    assert (rings["x"], rings["y"]) == ([trial.number], [GUESS])
    assert "estimated" in rings["hovertemplate"]
    assert rings["marker"]["symbol"] == "circle-open"
    for name in ("trial", "best so far", "its 95 % interval"):
        assert max(trace(figure, name)["y"]) < GUESS
    assert "1 pruned at a rung (their scores are estimates)" in page.text
    assert ".988" not in page.text
    assert all(GUESS not in t.get("x", []) for t in page.figures["figure-scores"]["data"])


def test_it_is_not_exported(pruned, tmp_path):
    run, trial = pruned
    config, study = open_run(run.folder)
    with pytest.raises(InputError, match="was pruned at a rung, so that its score is an estimate"):
        export_trial(config, study, trial.number, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_comparisons_and_later_searches_pass_it_over(pruned):
    run, trial = pruned
    found = run.study.evaluations()
    leaders = [one.trial.number for one in leading(searched(run.judge, found)) if one]
    assert trial.number not in leaders
    select = [
        Evaluation(split="select", digest=e.digest, recipe={}, role="finalist", value=e.value)
        for e in found
        if e.optimizers_own
    ]
    reached = curve(run.judge, [*found, *select], BudgetConfig(trials=4), 80).select
    assert max(reached) < GUESS
    storage, name = study_place(open_run(run.folder)[0], run.folder)
    for params in (best_own_params(run.study, 9), best_params(storage, name, 9)):
        assert len(params) == 3
        assert trial.params not in params


def test_the_progress_line_counts_it_and_does_not_call_it_best(pruned):
    run, _ = pruned
    out = StringIO()
    own = [e for e in run.study.evaluations() if e.optimizers_own]
    with ProgressDisplay(Console(file=out, width=200)) as display:
        display.on_record(e for e in run.study.evaluations() if e.role == "parent")
        display.phase("search", 0, len(own))
        for trial in own:
            display.recorded(trial)
    last = out.getvalue().splitlines()[-1]
    assert f"best so far {max(e.value for e in own if e.measured):.4f}" in last
    assert "1 pruned" in last
    parents = [e.value for e in run.study.evaluations() if e.role == "parent"]
    assert f"best parent {max(parents):.4f}" in last
    # on another split nothing is known of them
    with ProgressDisplay(Console(file=out, width=200)) as display:
        display.on_record(run.study.evaluations())
        display.phase("select", 0, 1)
        display.recorded(replace(own[0], split="select", role="finalist", value=0.125))
    last = out.getvalue().splitlines()[-1]
    assert "best so far 0.1250" in last
    assert "best parent" not in last
