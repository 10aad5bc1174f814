"""Every compiled merge is traced for a GPU, as far as that goes without one.

Tensors without data on the simulated GPU go through the very trace that the compiler makes. (On
`cuda` itself a torch for CPUs cannot take an entry of a tensor, data or not.) What comes after the
trace, TorchInductor's code for the GPU, needs one.
"""

from __future__ import annotations

import pytest
import torch
import torch._inductor
from merges import open_family, random_recipe, sparse
from simulated_accelerator import NAME, running
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from evomerge.materialize import compiled
from evomerge.materialize.compiled import Compiler
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.plan import plan
from evomerge.methods import methods
from evomerge.methods.core.sparsify import sparsifiers

ELEMENTWISE = [name for name, method in methods().items() if method.elementwise]
READS_NUMBERS = torch.ops.aten._local_scalar_dense.default
"""The operation by which Python asks for a number of a tensor, for which the GPU is waited."""


class Noting(Compiler):
    """Calls functions as they are, and notes the largest call of each form."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __call__(self, function, *arguments):
        found = []
        form = compiled._form(arguments, arguments[0].shape, found)
        self.calls.setdefault((function, form), (function, arguments, found))
        return function(*arguments)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return open_family(tmp_path_factory.mktemp("family"), num_hidden_layers=1)


@torch.no_grad()
def graphs_of(models, recipe, monkeypatch):
    """The graphs that a recipe's merges are compiled from on a GPU."""
    kernel, noting = Kernel(models.sources), Noting()
    kernel.__dict__["_run"] = noting
    for step in plan(recipe, models.layout, models.sources):
        kernel.fill(torch.empty(step.tensor.shape), step, recipe.seed)
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, *_, **__: graph)
    graphs = []
    for function, arguments, tensors in noting.calls.values():
        with running(), FakeTensorMode(shape_env=ShapeEnv()):
            there = [torch.empty(t.shape, dtype=t.dtype, device=NAME) for t in tensors]
            graphs.append(Compiler()._compile(function, arguments, there))
    return graphs


def assert_is_on_a_gpu(graph):
    wrong = []
    for node in graph.graph.nodes:
        values = node.meta.get("val")
        for value in values if isinstance(values, tuple | list) else [values]:
            if isinstance(value, torch.Tensor) and value.device.type != NAME:
                wrong.append(f"{node.name}: {value.device}")
        if node.target is READS_NUMBERS:
            wrong.append(f"{node.name}: asks for a number")
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_method_is_one_graph_on_a_gpu(models, monkeypatch, name):
    graphs = graphs_of(models, random_recipe(models, name), monkeypatch)
    assert graphs
    for graph in graphs:
        assert_is_on_a_gpu(graph)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sparsifiers())
def test_every_sparsifier_is_one_graph_on_a_gpu(models, monkeypatch, kind):
    for graph in graphs_of(
        models, sparse(random_recipe(models, "task_arithmetic"), kind), monkeypatch
    ):
        assert_is_on_a_gpu(graph)


def test_ties_is_one_graph_on_a_gpu(models, monkeypatch):
    for graph in graphs_of(models, random_recipe(models, "ties"), monkeypatch):
        assert_is_on_a_gpu(graph)
