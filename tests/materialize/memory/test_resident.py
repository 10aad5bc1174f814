"""A model built once, into which candidates are written."""

from __future__ import annotations

import pytest
import torch
from merged_bytes import open_family
from some_recipes import some_recipe

from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return open_family(tmp_path_factory.mktemp("family"))


def test_a_failed_write_does_not_spoil_the_next(models):
    good = some_recipe(models)
    resident = Resident(models.layout, Kernel(models.sources), torch.float32)
    resident.write(good)
    before = {k: v.clone() for k, v in resident.model.state_dict().items()}
    resident.write(some_recipe(models, "linear"))
    resident.write(good)
    for name, value in resident.model.state_dict().items():
        assert torch.equal(value, before[name])
