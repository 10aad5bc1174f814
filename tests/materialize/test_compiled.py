"""Compiled passes give the bytes of the plain ones, and a method that cannot be compiled works."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from evomerge.config import ModelsConfig
from evomerge.materialize.compiled import Compiler
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import plan
from evomerge.materialize.statistics import Statistics
from evomerge.methods.registry import View, methods
from evomerge.methods.trimming import spectrum
from evomerge.models.preflight import preflight
from evomerge.recipe import BASE, Merge, Recipe, Slot

ELEMENTWISE = [name for name, method in methods().items() if method.elementwise]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tensors of more than the entries from which on a compiled pass is called."""
    folder = tmp_path_factory.mktemp("family")
    paths = tiny.save_family(
        folder, ("math", "lang"), hidden_size=160, intermediate_size=192, num_hidden_layers=1
    )
    return preflight(
        ModelsConfig(
            base=str(paths[BASE]), experts={k: str(v) for k, v in paths.items() if k != BASE}
        )
    )


def recipe_of(models, name):
    """Random parameters of a method on every tensor."""
    method, rng = methods()[name], np.random.default_rng(4)
    experts = list(models.sources)[1:][: method.experts[1]]
    drawn = {
        p.name: float(rng.uniform(max(p.low, 0.2), max(p.low, min(p.high, 0.9))))
        for p in method.parameters.values()
        if p.type is float
    }
    shared = {k: v for k, v in drawn.items() if not method.parameters[k].per_expert}
    each = {k: v for k, v in drawn.items() if method.parameters[k].per_expert}
    groups = [(None, group) for group in models.layout.outside_groups]
    groups += [(layer, "layer") for layer in range(models.layout.layers)]
    return Recipe(
        sources={name: source.digest for name, source in models.sources.items()},
        path=tuple(Slot(source=BASE, layer=i) for i in range(models.layout.layers)),
        merges=tuple(
            Merge(
                slot=slot,
                group=group,
                method=name,
                experts={e: dict(each) for e in experts},
                parameters=shared,
            )
            for slot, group in groups
        ),
        seed=9,
    )


def written(models, recipe, **options):
    kernel, tensors = Kernel(models.sources, **options), {}
    for step in plan(recipe, models.layout, models.sources):
        tensors[step.tensor.name] = torch.empty(step.tensor.shape)
        kernel.fill(tensors[step.tensor.name], step, recipe.seed)
    return kernel, tensors


@pytest.mark.parametrize("name", ELEMENTWISE)
@torch.no_grad()
def test_compiled_methods_give_the_same_bytes(models, name, caplog):
    recipe = recipe_of(models, name)
    _, plain = written(models, recipe, compiled=False, scratch=1)
    _, compiled = written(models, recipe, compiled=True)
    assert "uncompiled" not in caplog.text
    for tensor, value in plain.items():
        assert value.view(torch.int32).equal(compiled[tensor].view(torch.int32)), tensor


def test_a_function_that_cannot_be_compiled_is_called_as_it_is(caplog):
    def asks(tensor):
        return tensor + 1 if tensor.sum() > 0 else tensor

    compiler = Compiler()
    for _ in range(2):
        assert torch.equal(compiler(asks, torch.ones(100)), torch.full((100,), 2.0))
    assert caplog.text.count("uncompiled") == 1


def test_candidates_share_the_sources_statistics_and_evicted_ones_come_back(models):
    recipe = recipe_of(models, "ties")
    kernel, first = written(models, recipe, statistics=Statistics())
    kept = kernel.statistics.nbytes
    assert kept > 0
    tight, second = written(models, recipe, statistics=Statistics(limit=1))
    assert tight.statistics.nbytes <= kept / 10
    for name, value in first.items():
        assert torch.equal(value, second[name])


def test_a_statistic_is_computed_once(monkeypatch):
    calls = []

    def counting(view, expert):
        calls.append(expert)
        return spectrum(view, expert)

    statistics = Statistics()
    base = torch.zeros(100)
    view = View(base, [base + 1, base + 2], torch.float32)
    for _ in range(3):
        found = statistics.of(counting, view, "w", ["math", "lang"])
    assert calls == [0, 1]
    assert [f.counts[-1] for f in found] == [100, 100]
