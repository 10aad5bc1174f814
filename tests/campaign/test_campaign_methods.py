"""A whole campaign whose method is searched, tensor by tensor."""

from __future__ import annotations

import pytest
import tiny
from running import evaluations, facts, run

from evomerge.report.pages.report import report_page
from evomerge.results.coefficients import coefficient_summary
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run

WEIGHTS = (
    "space.weights={method: [linear, ties, dare_ties], methods_per: group, granularity: tensor, "
    "choose_experts: true, genes: {weight: [0, 1.5], ties.density: [0.2, 1]}}"
)


@pytest.mark.slow
def test_a_search_over_methods_resumes_where_it_stopped(tmp_path):
    tiny.save_campaign(tmp_path)
    options = [WEIGHTS, "optimizer={kind: cma, population: 4}"]
    whole = run(tmp_path, tmp_path / "whole", [*options, "budget.trials=6"])
    resumed = tmp_path / "resumed"
    for trials in (3, 6):
        run(tmp_path, resumed, [*options, f"budget.trials={trials}"])
    own = [fact for fact in facts(whole) if fact[0] == "search"]
    assert [fact for fact in facts(resumed) if fact[0] == "search"] == own
    methods = {m["method"] for e in evaluations(whole) for m in e.recipe["merges"]}
    assert {"linear", "ties", "dare_ties"} <= methods
    study = open_run(whole)[1]
    recipe = Results(study).best()["recipe"]
    assert set(coefficient_summary(study, recipe)) <= {"weight", "ties.density"}
    assert "linear or ties or dare_ties, searched per group, tuned per tensor" in report_page(study)
