"""Time-outs for hung work, derived from measured durations."""

from __future__ import annotations

from evomerge.workers.timeouts import FACTOR, LEAST, Timeouts

TIES, DELLA = {"ties"}, {"della"}


def measured(*evaluations):
    timeouts = Timeouts(least=1.0)
    for methods, items, writing, scoring in evaluations:
        timeouts.record_measurement(methods, items, {"materialize": writing, "score": scoring})
    return timeouts


def test_nothing_has_a_limit_before_something_was_measured():
    assert Timeouts().measure_limit(TIES, 100) is None
    assert Timeouts().build_limit() is None


def test_the_limit_grows_with_the_items_and_the_slowest():
    timeouts = measured((set(), 100, 2.0, 50.0), (TIES, 100, 3.0, 20.0))
    assert timeouts.measure_limit(TIES, 100) == FACTOR * (3.0 + 50.0)
    assert timeouts.measure_limit(TIES, 1000) == FACTOR * (3.0 + 500.0)
    assert timeouts.measure_limit(set(), 10) == FACTOR * (3.0 + 5.0)


def test_the_first_recipe_with_a_method_may_take_any_time():
    timeouts = measured((TIES, 100, 3.0, 20.0))
    assert timeouts.measure_limit(DELLA, 100) is None
    assert timeouts.measure_limit(TIES | DELLA, 100) is None
    timeouts.record_measurement(DELLA, 100, {"materialize": 900.0, "score": 20.0})
    assert timeouts.measure_limit(DELLA, 100) == FACTOR * (900.0 + 20.0)


def test_quick_work_has_time_enough():
    timeouts = Timeouts()
    timeouts.record_measurement(TIES, 10, {"materialize": 0.01, "score": 0.01})
    assert timeouts.measure_limit(TIES, 10) == LEAST
    timeouts.record_build(1.0)
    assert timeouts.build_limit() == LEAST
    timeouts.record_build(100.0)
    assert timeouts.build_limit() == FACTOR * 100.0
