"""The population: who is kept, and who solves what."""

from __future__ import annotations

import numpy as np
import pytest
from invented import COUNTS, Invented

from evomerge.recipe import Recipe
from evomerge.report.figures.archive import archive_state, elites, item_matrix, niches
from evomerge.results.population import (
    grid_summary,
    item_summary,
    niche_summary,
    population_of,
    state_summary,
)

N = COUNTS["search"]


def solving(*numbers, tasks=("add", "mul")):
    """Items of each task of which those of these numbers are solved."""
    return {task: np.isin(np.arange(N), numbers) * 1.0 for task in tasks}


@pytest.fixture
def archived(tmp_path):
    """Four trials; the optimizer kept those of ask 0, 2 and 3 when the last of them arrived."""
    run = Invented(tmp_path / "run", optimizer="m2n2").references()
    states = [[], [0], [0], [0, 2, 3]]
    solved = [range(0, 20), range(0, 2), range(10, 30), range(0, 20)]
    for members, numbers in zip(states, solved, strict=True):
        state = {"members": members, "coverage": 0.1 * len(members), "entropy": 0.5}
        run.add(run.recipe(), items=solving(*numbers), state=state)
    return run


def trials(run):
    return [e for e in run.study.evaluations() if e.optimizers_own]


def test_the_population_is_what_the_optimizer_kept_the_best_first(archived):
    population = population_of(archived.results)
    assert population.kept
    assert [e.ask for e in population.trials] == [0, 2, 3]
    archived.add(archived.recipe(), 0.99, state={"members": [1, 2]})
    assert [e.ask for e in population_of(archived.results).trials] == [2, 1]


def test_without_an_archive_the_best_stand_in_every_recipe_once(tmp_path):
    run = Invented(tmp_path / "run").references().search([0.5, 0, 0.9], {1: "oom"})
    run.add(Recipe.from_json(trials(run)[2].recipe), 0.9)
    run.add(run.recipe(), 1.0, pruned=20)
    population = population_of(run.results)
    assert not population.kept
    assert [e.ask for e in population.trials] == [2, 0], "an estimate is never among the best"


def test_niches_add_up_to_what_is_solved_and_tell_what_is_solved_by_one_alone(archived):
    first, *_, last = niche_summary(archived.results, population_of(archived.results))
    assert first["trial"] == trials(archived)[2].number
    assert first["alone"] == pytest.approx(10 / N)
    assert first["share"] == pytest.approx((10 + 10 / 3) / N)
    assert (last["alone"], last["share"]) == (0, pytest.approx((10 / 2 + 10 / 3) / N))
    figure = niches(niche_summary(archived.results, population_of(archived.results)))
    drawn = sum(sum(bars.x) for bars in figure.data)
    assert drawn == pytest.approx(30 / N), "their shares are the share of items anyone solves"


def test_a_member_pruned_at_a_rung_has_no_niche_and_gaps_for_what_was_not_measured(archived):
    archived.add(archived.recipe(), items=solving(*range(N)), pruned=8, state={"members": [0, 1]})
    archived.add(archived.recipe(), 0.5, state={"members": [0, 4]})
    population = population_of(archived.results)
    assert [e.ask for e in population.trials] == [0, 4], "estimates come last"
    assert [one["trial"] for one in niche_summary(archived.results, population)] == [
        trials(archived)[0].number
    ]
    found = item_summary(archived.results, population, "")
    assert found["rows"][-1]["estimated"]
    for task in found["tasks"]:
        assert task["values"][-1].count(None) == N - 8
        assert task["values"][-2].count(None) == 0
    figure = item_matrix(found)
    assert figure.layout.yaxis.ticktext[-1].endswith("(est.)")
    assert "not measured" in [t.name for t in figure.data]


def test_the_matrix_holds_every_item_of_parents_and_members_easiest_first(archived):
    population = population_of(archived.results)
    found = item_summary(archived.results, population, population.trials[1].digest)
    assert [row["name"] for row in found["rows"][:3]] == ["base", "math", "lang"]
    assert [row["role"] for row in found["rows"]] == ["parent"] * 3 + ["member", "winner", "member"]
    [add, _mul] = found["tasks"]
    members = np.array(add["values"])[3:]
    assert members.sum(axis=1).tolist() == [20, 20, 20]
    assert (np.diff(members.mean(axis=0)) <= 0).all()
    [base] = [e for e in archived.study.evaluations() if e.name == "base" and e.split == "search"]
    assert sum(add["values"][0]) == base.scores["add"].sum()
    figure = item_matrix(found)
    assert [list(row) for row in figure.data[0].z] == add["values"]
    assert figure.layout.yaxis.ticktext[4].endswith("★")


def test_losses_are_turned_and_scaled_from_the_worst_to_the_best(tmp_path):
    run = Invented(tmp_path / "run", tasks=("loss",), lower_is_better=("loss",))
    run.add(run.recipe(), items={"loss": np.linspace(1.0, 3.0, N)})
    [task] = item_summary(run.results, population_of(run.results), "")["tasks"]
    assert (task["values"][0][0], task["values"][0][-1]) == (1, 0)


def test_many_items_share_columns_as_means(monkeypatch, archived):
    monkeypatch.setattr("evomerge.results.population.COLUMNS", 20)
    [add, _] = item_summary(archived.results, population_of(archived.results), "")["tasks"]
    assert add["together"] == 4
    assert len(add["values"][3]) == N / 4
    assert sum(add["values"][3]) == pytest.approx(20 / 4)


def test_coverage_and_entropy_are_drawn_as_they_were_recorded(archived):
    found = state_summary(archived.results)
    numbers = [e.number for e in trials(archived)]
    assert found["coverage"] == {"trial": numbers, "value": pytest.approx([0, 0.1, 0.1, 0.3])}
    assert [tuple(t.y) for t in archive_state(found).data] == [
        tuple(found["coverage"]["value"]),
        tuple(found["entropy"]["value"]),
    ]


def test_elites_stand_in_the_cells_of_their_measures(tmp_path):
    run = Invented(tmp_path / "run", optimizer="map_elites").references().search([0.3, 0.8])
    state = {"members": [0, 1], "cells": [[2, 3], [9, 9]], "measures": ["add", "mul"]}
    run.add(run.recipe(), 0.1, state=state)
    grid = grid_summary(run.results)
    assert (grid["shape"], grid["bounds"]) == ([10, 10], [[0, 1], [0, 1]])
    figure = elites(grid)
    [heat] = figure.data
    assert heat.z[3][2] == trials(run)[0].value
    assert heat.z[9][9] == trials(run)[1].value
    assert sum(value is not None for row in heat.z for value in row) == 2
    assert (heat.x0 + 2 * heat.dx, heat.y0 + 3 * heat.dy) == pytest.approx((0.25, 0.35))
    assert figure.layout.xaxis.title.text == "add"
