"""Merging estimated on made-up tensors."""

from __future__ import annotations

import math

import pytest
import torch
from configs import small_config

from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import plan
from evomerge.models.layout import derive_layout
from evomerge.preflight import estimate_merging as merging
from evomerge.preflight.estimate_merging import MergeCost, estimate_merging
from evomerge.recipe import Merge, Recipe, Slot


@pytest.fixture
def layout():
    return derive_layout(small_config())


def recipe_of(layout, method, count=2):
    names = ["math", "lang"][:count]
    return Recipe(
        sources={"base": "", "math": "", "lang": ""},
        path=[Slot(source="base", layer=i) for i in range(layout.layers)],
        merges=[
            Merge(slot=i, group="layer", method=method, experts={n: {} for n in names})
            for i in range(layout.layers)
        ],
    )


DTYPES = {"base": torch.bfloat16, "math": torch.bfloat16, "lang": torch.bfloat16}


def estimated(layout, method, **kernel):
    return estimate_merging(
        recipe_of(layout, method), layout, DTYPES, Kernel({}, **kernel), torch.float32
    )


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "tsvm", "model_stock", "iso_c"])
def test_every_kind_of_method_is_estimated(layout, method):
    found = estimated(layout, method)
    assert 0 < found.seconds < 60
    assert found.once >= 0
    assert found.bytes >= 0


def test_statistics_are_as_large_as_they_will_be(layout):
    """A float32 for each entry of a merged task vector, in layers only."""
    entries = sum(math.prod(t.shape) for t in layout.tensors if t.layer is not None)
    assert estimated(layout, "tsvm").statistics == pytest.approx(4 * entries, rel=0.05)
    assert estimated(layout, "linear").statistics == 0


def test_statistics_that_do_not_grow_with_a_matrix_are_not_scaled_by_its_entries(
    layout, monkeypatch
):
    def measured(self, step, shape, copies=1):
        return MergeCost(1e-12 * math.prod(shape), 0.0, 0, 100)

    monkeypatch.setattr(merging._Bench, "_measured", measured)
    monkeypatch.setattr(merging, "_SIZES", (64, 256))
    assert estimated(layout, "tsvm").statistics == pytest.approx(100 * len(layout.tensors))


def costs_by_entries(monkeypatch, power):
    """Let every step cost its entries to a power."""

    def measured(self, step, shape, copies=1):
        entries = math.prod(shape)
        cost = 1e-12 * entries**power
        return MergeCost(cost, cost, 0, entries)

    monkeypatch.setattr(merging._Bench, "_measured", measured)


def whole(layout, recipe, power):
    steps = [s for s in plan(recipe, layout, DTYPES) if s.rule]
    return sum(1e-12 * math.prod(s.tensor.shape) ** power for s in steps)


@pytest.mark.parametrize(("method", "power"), [("ties", 1), ("opcm", 1), ("opcm", 1.5)], ids=str)
def test_large_tensors_cost_what_small_ones_tell(layout, monkeypatch, method, power):
    monkeypatch.setattr(merging, "_ENTRIES", 64)
    monkeypatch.setattr(merging, "_SIZES", (64, 256))
    costs_by_entries(monkeypatch, power)
    found = estimated(layout, method)
    recipe = recipe_of(layout, method)
    copied = sum(1e-12 * math.prod(t.shape) for t in layout.tensors if t.layer is None)
    expected = whole(layout, recipe, power)
    assert found.seconds == pytest.approx(expected + copied, rel=0.25)
