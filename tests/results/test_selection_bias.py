"""What is said of a winner that was the best of many: in the terminal, in JSON, on the page."""

from __future__ import annotations

import pytest
from invented import Invented
from rich.console import Console

from evomerge.export.card import _scores
from evomerge.judging.best_of_many import expected_on_new_items
from evomerge.judging.intervals import interval
from evomerge.judging.paired_tests import holm
from evomerge.recipe import Recipe
from evomerge.report.pages.report import report_page
from evomerge.report.tables import best_table
from evomerge.results.selection_bias import test_sets_line as told_of
from evomerge.results.written_numbers import short


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """A finished campaign whose winner was chosen among four of equal worth."""
    run = Invented(tmp_path_factory.mktemp("chosen"), budget=5)
    run.references().search([0.6, 0.6, 0.6, 0.6, 0.1])
    top = [e for e in run.study.evaluations() if e.optimizers_own][:4]
    on_select = [
        run.add(Recipe.from_json(e.recipe), 0.6, split="select", role="finalist") for e in top
    ]
    winner = max(on_select, key=lambda e: e.value)
    run.references("select").references("test")
    run.add(Recipe.from_json(winner.recipe), 0.6, split="test", role="finalist")
    run.opened({"trials": 5, "winner": winner.digest})
    digests = [e.digest for e in on_select]
    facts = {"winner": winner.digest, "finalists": digests, "trials": 5}
    run.study.set_note("concluded", facts)
    return run, winner, on_select


def printed(best):
    console = Console(width=400)
    with console.capture() as capture:
        console.print(best_table(best))
    return " ".join(capture.get().split())


def test_the_select_score_of_the_best_of_many_is_corrected(chosen):
    run, winner, on_select = chosen
    choice = run.results.best()["choice"]
    expected = expected_on_new_items(run.judge, [e.scores for e in on_select])
    assert (choice["finalists"], choice["select"]) == (4, winner.value)
    assert choice["expected"] == pytest.approx(expected)
    excess, span = winner.value - expected, interval(run.judge, winner.scores)
    assert excess > 0.02
    assert (choice["low"], choice["high"]) == pytest.approx((span.low - excess, span.high - excess))


def test_the_correction_is_printed_and_stands_on_page_and_card(chosen):
    best = chosen[0].results.best()
    select, expected = best["choice"]["select"], best["choice"]["expected"]
    for text, number in (
        (printed(best), short),
        (" ".join(report_page(chosen[0].study).split()), short),
        (" ".join(_scores(best)), "{:.3f}".format),
    ):
        assert f"Best of 4 on select: {number(select)} there is too high by about" in text
        assert f"on new documents {number(expected)} [{number(best['choice']['low'])}," in text
        assert "The test split had no part in the choice: its intervals need no correction" in text


def test_only_those_among_whom_the_winner_was_chosen_count(chosen):
    """An extended campaign has scored others on select before."""
    run, winner, on_select = chosen
    others = [e for e in on_select if e is not winner][:1]
    facts = {"winner": winner.digest, "finalists": [e.digest for e in [winner, *others]]}
    before = run.study.note("concluded")
    run.study.set_note("concluded", {**before, **facts})
    assert run.results.best()["choice"]["finalists"] == 2
    run.study.set_note("concluded", {"winner": winner.digest, "trials": 5})  # an older study's
    assert run.results.best()["choice"]["finalists"] == 4
    run.study.set_note("concluded", before)


def test_nothing_is_corrected_where_nothing_was_chosen(chosen, finished, midway):
    assert midway.results.best()["choice"] is None
    choice = finished.results.best()["choice"]
    assert choice["finalists"] == 1
    assert choice["expected"] == choice["select"]
    run, winner, on_select = chosen
    other = next(e for e in on_select if e.digest != winner.digest)
    assert run.results.trial(other.number)["choice"] is None


def test_p_values_of_test_are_corrected_for_the_rows(chosen):
    best = chosen[0].results.best()
    found = compared(best, "test")
    assert {one["test"] for one in found} == {"combined"}
    assert [one["p_holm"] for one in found] == holm([one["p"] for one in found])
    text = printed(best)
    assert "p: paired test, stratified by task, two-sided, Holm-corrected for 5 rows" in text
    paired = best["baselines"]["ties default"]["test"]["winner_minus_this"]
    assert paired["p"] < paired["p_holm"]
    row = text.partition("ties default")[2].partition("average")[0]
    assert row.split()[-1] == short(paired["p_holm"])
    card = " ".join(_scores(best))
    assert f"p = {paired['p_holm']:.3f}" in card


def compared(best, split):
    rows = [*best["parents"].values(), *best["baselines"].values()]
    return [row[split]["winner_minus_this"] for row in rows]


@pytest.mark.parametrize("split", ["search", "select"])
def test_splits_on_which_the_winner_was_chosen_have_intervals_and_no_p_values(chosen, split):
    found = compared(chosen[0].results.best(), split)
    assert all(one["p"] is None and one["p_holm"] is None for one in found)
    assert all(one["low"] < one["difference"] < one["high"] for one in found)


def test_before_test_is_opened_no_p_value_is_shown(midway):
    best = midway.results.best()
    lead = best["parents"]["base"]["search"]["winner_minus_this"]
    assert lead["p_holm"] is None
    for text in (
        printed(best),
        " ".join(report_page(midway.study).split()),
        " ".join(_scores(best)),
    ):
        assert "no p-values: this trial was chosen on search, which flatters its lead" in text
        assert "Holm" not in text
        assert '<th class="number">p</th>' not in text
    assert f"{short(lead['difference'], '+')} [{short(lead['low'], '+')}" in printed(best)


@pytest.mark.parametrize(
    ("tasks", "test"), [(("add",), "paired t test"), (("add", "mul"), "strat")]
)
def test_scores_between_right_and_wrong_are_tested_too(tmp_path, tasks, test):
    run = Invented(tmp_path / "run", budget=1, tasks=tasks, graded=True).references()
    run.search([0.8]).finish()
    best = run.results.best()
    assert test in printed(best)
    assert 0 < best["parents"]["base"]["test"]["winner_minus_this"]["p"] <= 1


def test_public_test_sets_are_told_of_a_few_by_name(chosen):
    run = chosen[0]
    tasks = run.study.note("tasks")
    run.study.set_note("tasks", [{**task, "test_set": "a/b, split test"} for task in tasks])
    best = run.results.best()
    assert best["test_sets"] == ["add", "mul"]
    for text in (printed(best), " ".join(_scores(best)), report_page(run.study)):
        assert "add, mul are public test sets, and the search has seen a part" in text
    run.study.set_note("tasks", tasks)
    assert run.results.best()["test_sets"] == []
    assert told_of(["a", "b", "c", "d", "e"]).startswith("a, b, c and 2 more are public test sets")


def test_the_grid_is_a_group_of_its_own_on_the_page(chosen):
    run = chosen[0]
    run.add(run.recipe([7] * len(run.genes)), 0.5, role="grid", name="ties weight 0.5")
    page = " ".join(report_page(run.study).split())
    assert 'ties weight 0.5 (best of 1 on a grid) <span class="soft">grid</span>' in page


def test_the_card_says_the_verdict(finished, losing):
    assert "beats the best parent, `math`, by" in " ".join(_scores(finished.results.best()))
    card = " ".join(_scores(losing.results.best()))
    assert "No merge beats `lang`: trial 5 is behind it" in card
    assert "More trials, other genes" in card
    assert "Trial 5 does not beat `lang`" in " ".join(_scores(losing.results.trial(5)))
