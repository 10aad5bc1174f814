"""The places of a slice's entries, whatever its length and wherever it begins."""

import pytest
import torch

from evomerge.methods.core.slices import first_places, places


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("start", [0, 7, (1 << 31) - 10, (1 << 32) - 5000])
def test_places_count_on_from_the_first_modulo_two_to_the_thirty_two(n, start):
    found = places(torch.empty(n), first_places(start))
    wanted = [(i + 2**31) % 2**32 - 2**31 for i in range(start, start + n)]
    assert found.dtype == torch.int32
    assert found.tolist() == wanted
