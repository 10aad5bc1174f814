"""How long is too long, by what was measured before."""

from __future__ import annotations

from evomerge.workers.timeouts import FACTOR, LEAST, Timeouts

TIES, DELLA = {"ties"}, {"della"}


def measured(*evaluations):
    patience = Timeouts(least=1.0)
    for methods, items, writing, scoring in evaluations:
        patience.measured(methods, items, {"materialize": writing, "score": scoring})
    return patience


def test_nothing_has_a_limit_before_something_was_measured():
    assert Timeouts().to_measure(TIES, 100) is None
    assert Timeouts().to_build() is None


def test_the_limit_grows_with_the_items_and_the_slowest():
    patience = measured((set(), 100, 2.0, 50.0), (TIES, 100, 3.0, 20.0))
    assert patience.to_measure(TIES, 100) == FACTOR * (3.0 + 50.0)
    assert patience.to_measure(TIES, 1000) == FACTOR * (3.0 + 500.0)
    assert patience.to_measure(set(), 10) == FACTOR * (3.0 + 5.0)


def test_the_first_recipe_with_a_method_may_take_any_time():
    patience = measured((TIES, 100, 3.0, 20.0))
    assert patience.to_measure(DELLA, 100) is None
    assert patience.to_measure(TIES | DELLA, 100) is None
    patience.measured(DELLA, 100, {"materialize": 900.0, "score": 20.0})
    assert patience.to_measure(DELLA, 100) == FACTOR * (900.0 + 20.0)


def test_quick_work_has_time_enough():
    patience = Timeouts()
    patience.measured(TIES, 10, {"materialize": 0.01, "score": 0.01})
    assert patience.to_measure(TIES, 10) == LEAST
    patience.built(1.0)
    assert patience.to_build() == LEAST
    patience.built(100.0)
    assert patience.to_build() == FACTOR * 100.0
