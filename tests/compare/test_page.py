"""The words of a comparison's page."""

from __future__ import annotations

from evomerge.compare.page import remarks


def comparison(items=None, **spent):
    arms = {label: {"curve": {"spent": [30.0, most]}} for label, most in spent.items()}
    return {
        "trials": 3,
        "items": items,
        "search_items": 30,
        "select_items": 12,
        "target": None,
        "first": None,
        "yardsticks": {},
        "optimizers": arms,
    }


def test_what_descents_cost_beyond_the_trials_is_said():
    plain, said = (
        remarks(comparison(random=90.0)),
        remarks(comparison(gradient=2298.0, random=90.0)),
    )
    assert len(said) == len(plain) + 1
    assert said[1].startswith("Gradient descents come on top: gradient spent up to 2,298.")
    assert len(remarks(comparison(items=3000, gradient=2298.0))) == len(plain)
