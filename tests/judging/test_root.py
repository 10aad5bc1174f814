"""Brent's method finds what scipy's finds, to the bit."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import brentq

from evomerge.judging.root import root

FUNCTIONS = {
    "a line": lambda x, c: x - c,
    "a cube": lambda x, c: (x - c) ** 3,
    "a wave": lambda x, c: math.sin(x) - math.sin(c) * 0.9 + (x - c) * 0.2,
    "steps": lambda x, c: math.floor(8 * x) / 8 - c,
    "a normal tail": lambda x, c: 0.3 * math.erfc(c) - 0.3 * math.erfc(x),
    "nearly flat": lambda x, c: math.atan(1e6 * (x - c)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@given(c=st.floats(0.01, 7.5))
def test_it_is_scipys_root_to_the_bit(name, c):
    def f(x):
        return FUNCTIONS[name](x, c)

    low, high = 0.0, 8.0
    assume(f(low) * f(high) < 0)
    assert root(f, low, high, within=1e-12) == brentq(f, low, high, xtol=1e-12, disp=False)


def test_a_root_at_an_end_is_that_end():
    assert root(lambda x: x, 0.0, 1.0, within=1e-12) == 0.0
    assert root(lambda x: x - 1, 0.0, 1.0, within=1e-12) == 1.0


def test_ends_of_one_sign_are_refused():
    with pytest.raises(ValueError, match="one sign"):
        root(lambda x: x + 1, 0.0, 1.0, within=1e-12)
