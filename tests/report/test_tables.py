"""Tables of results: the verdict in each, and how numbers are written."""

from __future__ import annotations

from rich.console import Console

from evomerge.report.tables import (
    best_name,
    best_table,
    export_hint,
    front_rows,
    listed_once,
    status_table,
)
from evomerge.results.written_numbers import p_value, short, span


def test_numbers_fit_a_terminal():
    assert [short(v) for v in (0.98765, -0.5, 1.0, 0.9999, 12.5)] == [
        ".988",
        "-.500",
        "1.000",
        "1.000",
        "12.500",
    ]
    assert short(0.25, "+") == "+.250"
    assert span({"low": -0.1, "high": 1.0}, "+") == "[-.100, +1.000]"
    assert (p_value(0.0004), p_value(0.04)) == ("<.001", ".040")


def printed(table):
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return " ".join(capture.get().split())


def test_a_losing_campaign_says_so_last_and_calls_nothing_a_winner(losing):
    text = printed(best_table(losing.results.best()))
    assert "winner" not in text
    assert "best merge: trial" in text
    assert (
        "No merge beats `lang`: trial 5 is behind it, -." in text.partition("nothing was chosen")[2]
    )
    assert text.endswith("find one that does.")
    status = printed(status_table(losing.results.status()))
    assert "verdict │ No merge beats `lang`" in status
    assert "best on search │" in status


def test_a_winning_campaign_says_so_as_plainly(finished):
    best = finished.results.best()
    text = printed(best_table(best))
    assert f"winner: trial {best['trial']}" in text
    assert f"Trial {best['trial']} beats the best parent, `math`, by +." in text
    assert "verdict │ Trial 8 beats the best parent" in printed(
        status_table(finished.results.status())
    )


def test_before_the_end_it_is_the_best_so_far(midway):
    text = printed(best_table(midway.results.best()))
    assert "best so far: trial" in text
    assert "best so far − this" in text
    assert "Best so far: trial 6 leads the best parent" in text
    assert "winner" not in text
    status = printed(status_table(midway.results.status()))
    assert "best so far │ 0." in status
    assert "verdict │ Best so far: trial 6" in status


def test_of_a_front_the_highest_mean_is_not_called_the_best():
    front = {"verdict": {"front": {"members": 7}}}
    assert best_name({"done": False, **front}) == "highest mean so far"
    assert best_name({"done": True, **front}) == "highest mean on search"
    assert best_name({"done": False, "verdict": None}) == "best so far"


def test_the_way_to_export_follows_from_the_verdict(finished, losing):
    assert export_hint(finished.results.best(), "runs/a").startswith("export the winner: ")
    assert export_hint(losing.results.best(), "runs/a").endswith("runs/a --to DIR --anyway")
    stage = {**finished.results.best()["verdict"], "stage": {"stage": "blend", "trial": 3}}
    assert "winner of stage blend" in export_hint({"verdict": stage}, "runs/a")


def test_the_front_has_every_point_once_and_the_parents():
    def scored(*goals):
        tasks = {name: {"mean": mean} for name, mean in zip(("a", "b"), goals, strict=True)}
        return {"search": {"tasks": tasks}, "select": None, "test": {"tasks": tasks}}

    def point(trial, digest, a, b):
        goals = {"a": a, "b": b}
        return {"trial": trial, "digest": digest, "search": goals, "select": None, "test": goals}

    front = [point(7, "x", 0.5, 0.5), point(9, "y", 0.5, 0.5), point(8, "z", 0.9, 0.1)]
    best = {"front": front, "digest": "y", "parents": {"base": scored(0.2, 0.3)}}
    rows = front_rows(best)
    # the row of the preferred trial has its number, by which it is exported
    assert [row["name"] for row in rows] == ["9 (+1 alike)", "8", "base"]
    assert [row["trial"] for row in rows] == [9, 8, None]
    assert [row["preferred"] for row in rows] == [True, False, False]
    assert rows[-1]["test"] == {"a": 0.2, "b": 0.3}


def test_recipes_that_score_alike_everywhere_are_listed_once():
    def scored(mean):
        return {"search": {"tasks": {"a": {"mean": mean}}}, "select": None, "test": None}

    found = listed_once({"uniform": scored(0.5), "default": scored(0.6), "average": scored(0.5)})
    assert list(found) == ["uniform = average", "default"]
