"""NaN and infinity are counted wherever they stand, and nothing else is."""

from __future__ import annotations

import math

import pytest
import torch

from evomerge.models.files import finite
from evomerge.models.files.finite import count_non_finite

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("place", [0, 1, 17, 1000, 1021, 2047, 2050])
def test_one_nan_is_found_at_any_place(dtype, place, monkeypatch):
    monkeypatch.setattr(finite, "_CHUNK", 1024)
    tensor = torch.randn(2051).to(dtype).view(7, 293)
    assert not count_non_finite(tensor)
    tensor.view(-1)[place] = math.nan
    found = count_non_finite(tensor)
    assert (found.nan, found.infinite, found.size) == (1, 0, 2051)
    assert str(found) == "NaN (1 of 2051 values)"


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
def test_infinity_of_either_sign_is_found_beside_nan(dtype, value):
    tensor = torch.zeros(300, dtype=dtype)
    tensor[7] = value
    assert str(count_non_finite(tensor)) == "infinity (1 of 300 values)"
    tensor[8:10] = math.nan
    assert str(count_non_finite(tensor)) == "NaN and infinity (3 of 300 values)"


def test_the_largest_finite_values_integers_and_nothing_are_finite():
    for dtype in DTYPES:
        top = torch.finfo(dtype).max
        assert not count_non_finite(torch.tensor([top, -top], dtype=torch.float64).to(dtype))
    assert not count_non_finite(torch.tensor([1 << 62]))
    assert not count_non_finite(torch.empty(0))
