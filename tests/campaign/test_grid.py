"""A grid of uniform merges beside parents and baselines: on request, and outside the budget."""

from __future__ import annotations

import pytest
from running import evaluations, run

from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.report.pages.report import report_page
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run


def test_the_grid_is_scored_before_the_search_and_its_best_meets_the_winner(tiny_folder):
    out = run(tiny_folder, overrides=["space.grid=4", "budget.trials=2"])
    grid = [e for e in evaluations(out) if e.role == "grid"]
    on_search = [e for e in grid if e.split == "search"]
    # weights .5 and 1 are the uniform and the default baseline already
    assert [e.name for e in on_search] == [f"task_arithmetic weight {w}" for w in ("0", "1.5")]
    best = max(on_search, key=lambda e: e.value)
    assert {(e.split, e.digest) for e in grid} - {("search", e.digest) for e in on_search} == {
        ("select", best.digest),
        ("test", best.digest),
    }
    study = open_run(out)[1]
    ((name, scores),) = Results(study).best()["grid"].items()
    assert name == f"{best.name} (best of 2 on a grid)"
    assert scores["test"]["winner_minus_this"]
    assert Results(study).status()["trials"] == 2
    assert name in report_page(study)


def test_a_grid_may_be_added_to_a_study_that_has_begun(tiny_folder):
    out = run(tiny_folder, overrides=["budget.trials=1"])
    before = [e.digest for e in evaluations(out)]
    run(tiny_folder, overrides=["budget.trials=1", "space.grid=2"])
    after = evaluations(out)
    assert [e.digest for e in after[: len(before)]] == before
    assert sum(e.role == "grid" for e in after) >= 2


def test_a_grid_is_over_every_parameter_of_every_method(tiny_folder):
    genes = "{weight: [0, 1], density: {low: 0.01, high: 1, log: true}}"
    weights = f"{{method: [ties, linear], genes: {genes}}}"
    overrides = [f"space.weights={weights}", "space.grid=3"]
    grid = prepare(load_campaign(tiny_folder / "campaign.yaml", overrides)).grid
    assert sum(name.startswith("ties") for name in grid) == 9
    assert sum(name.startswith("linear") for name in grid) == 3
    assert "ties weight 0.5 density 0.1" in grid  # the middle by logarithms
    merges = grid["ties weight 0.5 density 0.1"].merges
    assert {v["weight"] for m in merges for v in m.experts.values()} == {0.5}


def test_a_grid_that_is_too_large_is_refused_before_any_work(tiny_folder):
    with pytest.raises(InputError, match=r"space\.grid: 300 values .* smaller"):
        prepare(load_campaign(tiny_folder / "campaign.yaml", ["space.grid=300"]))
