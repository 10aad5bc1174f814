"""Coefficients of one recipe and of a population."""

from __future__ import annotations

from invented import Invented

from evomerge.report.figures.coefficients import heat_map
from evomerge.results.coefficients import coefficient_summary, population_coefficients


def test_one_granularity_for_the_whole_model_is_one_row(tmp_path):
    run = Invented(tmp_path / "run", granularity="model").references()
    run.add(run.recipe([0.25] * len(run.genes)), 0.5)
    [weight, shared] = coefficient_summary(run.study, run.results.best()["recipe"]).values()
    assert (weight["rows"], weight["values"]) == (["whole model"], [[0.25, 0.25]])
    assert (shared["columns"], shared["values"]) == (["all experts"], [[0.25]])


def test_coefficients_of_a_method_that_was_chosen_here_and_there_are_shown_there(tmp_path):
    genes = {"ties.weight": [0, 1.5], "linear.weight": [0, 1], "dare_ties.lambda": [0, 2]}
    run = Invented(tmp_path / "run", method=["ties", "linear", "dare_ties"], genes=genes)
    recipe = run.recipe([0.25] * len(run.genes)).to_json()
    recipe["merges"][1]["method"] = "linear"
    tables = coefficient_summary(run.study, recipe)
    assert list(tables) == ["ties.weight", "linear.weight"]
    assert tables["linear.weight"]["rows"] == ["layer 0"]
    assert tables["linear.weight"]["bounds"] == [0, 1]
    assert tables["ties.weight"]["rows"] == ["embeddings", "layer 1", "layer 2", "final norm"]


def test_the_populations_coefficients_are_means_and_deviations_of_its_recipes(tmp_path):
    run = Invented(tmp_path / "run")
    low, high = (run.recipe([value] * len(run.genes)).to_json() for value in (0.25, 0.75))
    high["merges"] = high["merges"][:-1]  # a group that only one of them has
    found = population_coefficients(run.study, [low, high])["weight"]
    assert found["rows"] == coefficient_summary(run.study, low)["weight"]["rows"]
    assert found["values"][0] == [0.5, 0.5]
    assert found["spread"][0] == [0.25, 0.25]
    assert (found["values"][-1], found["spread"][-1]) == ([0.25, 0.25], [0.0, 0.0])
    assert heat_map("weight", found).data[0].z[0] == [0.5, 0.5]
