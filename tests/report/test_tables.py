"""How numbers are written in tables."""

from __future__ import annotations

from evomerge.report.tables import p_value, short, span


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
