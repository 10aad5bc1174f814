"""The origin of a recipe: every ancestor once, and every slot's source."""

from __future__ import annotations

from invented import Invented

from evomerge.report.figures.ancestry import data_flow, family_tree
from evomerge.results.ancestry import ancestry_summary, path_summary


def trials(run):
    return [e for e in run.study.evaluations() if e.optimizers_own]


def test_a_family_holds_every_ancestor_once_with_its_generation(tmp_path):
    run = Invented(tmp_path / "run", optimizer="m2n2").references()
    parents = [(), (), (), (0, 1), (3,), (3, 4, 77)]
    for level, own in zip([0.2, 0.3, 0.9, 0.4, 0.5, 0.8], parents, strict=True):
        run.add(run.recipe(), level, parents=own, pruned=10 if own == (3,) else None)
    numbers = [e.number for e in trials(run)]
    family = ancestry_summary(run.study, numbers[5])["trials"]
    assert [one["trial"] for one in family] == [numbers[i] for i in (0, 1, 3, 4, 5)]
    assert [one["generation"] for one in family] == [2, 2, 1, 1, 0]
    assert family[-1]["parents"] == [numbers[3], numbers[4]], "what is not on record is left out"
    assert ancestry_summary(run.study, numbers[0]) is None
    figure = family_tree({"trials": family}, run.results.trials(), "winner", "score")
    marks = {t.name: t for t in figure.data}
    assert list(marks["without parents"].x) == numbers[:2]
    assert list(marks["ancestor"].marker.symbol) == ["circle", "circle", "circle-open"]
    assert list(marks["other trials"].x) == [numbers[2]]
    run.add(run.recipe(), 0.6, parents=(88,))
    last = trials(run)[-1].number
    assert ancestry_summary(run.study, last) is None, "none of its parents is on record"


def test_a_path_names_the_source_of_every_slot_and_the_bases_own_is_no_news(tmp_path):
    run = Invented(tmp_path / "run").references()
    recipe = run.recipe().to_json()
    assert path_summary(run.study, recipe) is None
    recipe["path"] = [
        {"source": "lang", "layer": 2, "scale": 1.0},
        {"source": "base", "layer": 0, "scale": 0.5},
        {"source": "math", "layer": 2, "scale": 1.0},
    ]
    recipe["merges"] = [merge for merge in recipe["merges"] if merge["slot"] == 1]
    path = path_summary(run.study, recipe)
    assert [slot["source"] for slot in path] == ["lang", "merged", "math"]
    figure = data_flow(path, [path[:2]])
    marks = {t.name: t for t in figure.data if t.mode != "lines"}
    assert {name: (t.x[0], t.y[0]) for name, t in marks.items()} == {
        "lang": (0, 2),
        "merged": (1, 0),
        "math": (2, 2),
    }
    assert marks["merged"].text == ("×0.50",)
