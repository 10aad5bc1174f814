"""The elected sign's sum is what the definition says, to the bit."""

import pytest
import torch

from evomerge.methods.core.combine import elect_and_sum


@pytest.mark.parametrize("normalize", [False, True])
def test_entries_of_the_elected_sign_are_added_zeros_taking_no_part(normalize):
    generator = torch.Generator().manual_seed(0)
    parts = [(torch.randn(4000, generator=generator) * 2).round() / 3 for _ in range(3)]
    parts[0][:500], parts[1][:700], parts[2][:600] = -0.0, 0.0, -0.0
    weight = [0.7, -0.3, 0.1]
    wanted = []
    for entries in zip(*parts, strict=True):
        positive = sum(entries[1:], entries[0]) >= 0
        total, divisor = torch.tensor(0.0), torch.tensor(0.0)
        for w, entry in zip(weight, entries, strict=True):
            if (entry > 0) if positive else (entry < 0):
                total, divisor = total + entry, divisor + w
        wanted.append(total / divisor if normalize and divisor != 0 else total)
    found = elect_and_sum(parts, weight, normalize)
    assert torch.equal(found.view(torch.int32), torch.stack(wanted).view(torch.int32))
