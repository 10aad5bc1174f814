"""`status` and `best` of studies that are unfinished, extended, or full of failures."""

from __future__ import annotations

import pytest
from invented import COUNTS, Invented
from rich.console import Console

from evomerge.judging import build_judge
from evomerge.report.tables import best_table, status_table
from evomerge.results.results import shown_split


def printed(table):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return " ".join(capture.get().split())


def test_failures_are_counted_by_reason(finished):
    status = finished.results.status()
    assert (status["trials"], status["completed"], status["failed"]) == (6, 4, 2)
    assert status["failures"] == {"out of memory": 2}
    text = printed(status_table(status))
    assert "failed × 2 │ out of memory" in text
    assert "state │ done" in text


def test_a_reason_is_printed_as_it_is(tmp_path):
    run = Invented(tmp_path / "run").references().search([0.5, 0], {1: "[red]odd[/red] shape"})
    assert "[red]odd[/red] shape" in printed(status_table(run.results.status()))


def test_a_study_without_a_success_has_a_status(tmp_path):
    run = Invented(tmp_path / "run").references().search([0], {0: "oom"})
    status = run.results.status()
    assert (status["best"], status["done"]) == (None, False)
    assert "none yet" in printed(status_table(status))


def test_before_the_test_is_opened_search_is_shown_and_said(midway):
    best = midway.results.best()
    assert shown_split(best) == "search"
    assert best["scores"]["select"] is best["scores"]["test"] is None
    text = printed(best_table(best))
    assert "The test split has not been opened: the budget is not spent." in text
    assert "running: it searches" in printed(status_table(midway.results.status()))


def test_one_opening_of_the_test_needs_no_remark(finished):
    best = finished.results.best()
    assert shown_split(best) == "test"
    assert "opened" not in printed(best_table(best)).replace("once it is open", "")


def test_a_test_opened_twice_is_said_with_the_trials_it_was_opened_after(extensible):
    extensible.opened({"trials": 9, "winner": "another"})
    text = printed(best_table(extensible.results.best()))
    assert "The test split was opened 2 times (after 6, 9 trials)" in text
    assert "not on untouched data" in text


def test_a_study_that_went_on_after_its_test_is_not_done(extensible):
    assert extensible.results.status()["done"] is True
    extensible.search([0.5])
    assert extensible.results.status()["done"] is False


def test_a_reference_that_failed_on_the_test_leaves_a_gap_and_no_comparison(tmp_path):
    run = Invented(tmp_path / "run", budget=1).references().search([0.8])
    run.add(run.recipe([9] * len(run.genes)), 0.4, role="baseline", name="fragile")
    run.finish()
    best = run.results.best()
    assert best["baselines"]["fragile"]["test"] is None
    assert "fragile" not in str(run.results.tasks(best))
    row = printed(best_table(best)).partition("fragile")[2]
    assert row.split()[1:3] == ["–", "–"]


def test_trials_are_the_optimizers_in_order(finished):
    trials = finished.results.trials()
    assert [t["trial"] for t in trials] == [5, 6, 7, 8, 9, 10]
    failed = {"value": None, "se": None, "estimated": False, "reason": "out of memory"}
    assert trials[2] == {"trial": 7, **failed}
    assert trials[0]["se"] > 0


def test_task_tables_count_what_the_winners_table_counts(finished):
    best = finished.results.best()
    tasks = finished.results.tasks(best)
    for task, found in tasks.items():
        assert found["scores"]["winner", "winner"]["mean"] == pytest.approx(
            best["scores"]["test"]["tasks"][task]["mean"]
        )
        assert best["scores"]["test"]["tasks"][task]["n"] == COUNTS["test"]


def test_a_study_is_loaded_once_and_judged_once_for_all_its_tables(finished, monkeypatch):
    loaded, built = [], []
    evaluations = finished.study.evaluations
    monkeypatch.setattr(finished.study, "evaluations", lambda: loaded.append(1) or evaluations())
    monkeypatch.setattr(finished.study, "markers", list)  # which look at the evaluations themselves
    monkeypatch.setattr(
        "evomerge.results.results.build_judge", lambda *a: built.append(1) or build_judge(*a)
    )
    results = finished.results
    best = results.best()
    tables = results.tasks(best), results.status(), results.trial(best["trial"]), results.facts()
    assert all(tables)
    assert (len(loaded), len(built)) == (1, 1)
