"""Finalists and the winner among them."""

from __future__ import annotations

from types import SimpleNamespace

from evomerge.judging.selection import best, finalists


def test_finalists_are_distinct_recipes_best_first_and_earlier_first_among_equals():
    def trial(n, digest, value):
        return SimpleNamespace(n=n, digest=digest, value=value)

    trials = [trial(0, "a", 0.5), trial(1, "b", 0.7), trial(2, "c", None), trial(3, "b", 0.7)]
    trials += [trial(4, "d", 0.7), trial(5, "e", 0.1)]
    assert [t.n for t in finalists(trials, 3)] == [1, 4, 0]
    assert best(trials).n == 1
    assert best([trial(0, "a", None)]) is None
