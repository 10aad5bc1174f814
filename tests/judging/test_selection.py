"""Finalists and the winner among them."""

from __future__ import annotations

from types import SimpleNamespace

from evomerge.judging.selection import Judged, best, finalists, parents_last


def test_finalists_are_distinct_recipes_best_first_and_earlier_first_among_equals():
    def trial(n, digest, value):
        return SimpleNamespace(n=n, digest=digest, value=value)

    trials = [trial(0, "a", 0.5), trial(1, "b", 0.7), trial(2, "c", None), trial(3, "b", 0.7)]
    trials += [trial(4, "d", 0.7), trial(5, "e", 0.1)]
    assert [t.n for t in finalists(trials, 3)] == [1, 4, 0]
    assert best(trials).n == 1
    assert best([trial(0, "a", None)]) is None


def test_of_a_front_what_a_parent_matches_in_all_goals_is_not_preferred():
    def one(name, *goals):
        scores = SimpleNamespace(objectives=goals, fitness=sum(goals), estimated=False)
        return Judged(name, name, scores)

    front = [one("again", 0.5, 0.9), one("bend", 0.7, 0.7), one("end", 0.9, 0.1)]
    parents = [one("a parent", 0.5, 0.9), one("another", 0.2, 0.2)]
    assert [j.trial for j in parents_last(front, parents)] == ["bend", "end", "again"]
    assert parents_last(front, []) == front
