"""Derivatives in merge coefficients agree with finite differences, for every method that claims."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from calibrated_data import some_calibration
from merges import open_family, random_recipe, sparse

from evomerge.common.errors import InputError
from evomerge.materialize import gradients, kernel
from evomerge.materialize.kernel import Kernel, Prepared
from evomerge.materialize.plan import MergeRule, plan
from evomerge.methods import find_method, methods
from evomerge.methods.core.aim import aimed
from evomerge.methods.core.masks import at
from evomerge.methods.core.sparsify import sparsifiers
from evomerge.methods.core.view import whole_view
from evomerge.recipe import Merge

SHAPE = (6, 7)
OWN = {n: m for n, m in methods().items() if m.function.__module__.startswith("evomerge.")}
CLAIMED = {name for name, method in OWN.items() if method.differentiable_in}
REFUSED = {"arcee_fusion", "iso_cts", "opcm", "pcb", "twin"}
CASES = [(name, {}) for name in sorted(CLAIMED)] + [
    ("linear", {"normalize": False, "base_weight": 0.3}),
    ("task_arithmetic", {"normalize": True}),
    ("ties", {"normalize": False}),
    ("nuslerp", {"along": "rows"}),
    ("nuslerp", {"along": "columns", "task_vectors": True}),
    ("model_stock", {"filter_wise": True}),
    ("multislerp", {"task_vectors": True}),
    ("dare_ties", {"rescale": "l1"}),
    ("della", {"rescale": "l1"}),
]


def tensors(method, dtype=torch.float64):
    """A base and experts of the method's least number, but two where it allows two."""
    random = torch.Generator().manual_seed(3)
    low, high = method.experts
    count = min(max(low, 2), high or 3)
    base = torch.randn(SHAPE, generator=random, dtype=torch.float64)
    change = [torch.randn(SHAPE, generator=random, dtype=torch.float64) for _ in range(count)]
    return base.to(dtype), [(base + 0.3 * one).to(dtype) for one in change]


def rule_of(method, count, settings):
    """Every number somewhere within its range, all different."""
    given = {}
    for parameter in method.parameters.values():
        middle = [0.37 + 0.11 * i for i in range(count)]
        value = middle if parameter.per_expert else 0.43
        given[parameter.keyword] = value if parameter.type is float else parameter.default
    if method.name == "nearswap":
        given["t"] = 0.2
    if method.name.startswith("ram"):
        given["epsilon"] = 0.1
    names = tuple(str(i) for i in range(count))
    return MergeRule(method, names, {**given, **settings})


def data_of(method, experts):
    return some_calibration(method.calibrated, SHAPE, len(experts), dtype=torch.float64)


def derivatives(rule, base, experts, gradient):
    """By the pass, added up over slices of eight entries."""
    method = rule.method
    view = replace(whole_view(base, experts, data_of(method, experts)), block=8)
    prepared = Prepared(view.base, view, partial(at, 0, "", rule.experts), added=False)

    def measure(arguments=None):
        given = {**(arguments or rule.arguments), "at": prepared.place}
        return method.measured(view, given) if method.measure else None

    found = gradients.slice_gradients(rule, prepared, measure, gradient.flatten())
    return sum(found, torch.zeros((), dtype=base.dtype))


def difference(rule, base, experts, gradient, expert, keyword):
    """By two merges, a little to either side."""
    step, ends = 1e-6, []
    for by in (step, -step):
        moved = rule.arguments[keyword]
        if expert is None:
            moved = moved + by
        else:
            moved = [v + by * (i == int(expert)) for i, v in enumerate(moved)]
        given = {**rule.arguments, keyword: moved}
        merged = rule.method(base, experts, calibrated=data_of(rule.method, experts), **given)
        ends.append((merged * gradient).sum().item())
    return (ends[0] - ends[1]) / (2 * step)


def test_every_method_has_a_gradient_but_those_that_the_docs_name():
    assert OWN.keys() - CLAIMED == REFUSED


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_derivatives_are_those_of_finite_differences(name, settings, monkeypatch):
    monkeypatch.setattr(gradients, "SLICE", 8)
    method = find_method(name, "test")
    base, experts = tensors(method)
    rule = rule_of(method, len(experts), settings)
    gradient = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = derivatives(rule, base, experts, gradient)
    owners = gradients._coefficients(rule)
    kept_by = {"threshold", "agree", "epsilon"}  # they only compare
    for (expert, parameter), value in zip(owners, found.tolist(), strict=True):
        keyword = method.parameters[parameter].keyword
        expected = difference(rule, base, experts, gradient, expert, keyword)
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-7), (expert, parameter)
        assert value != 0 or parameter in kept_by, f"{parameter} moves nothing"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_method_without_a_gradient_is_refused_by_name(name):
    with pytest.raises(InputError, match=f"space: {name} has no gradient"):
        gradients.check_differentiable(["ties", name], "space")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    return open_family(folder, num_hidden_layers=1, dtype=torch.float32, spread=3.0)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
@pytest.mark.parametrize("sparsifier", sorted(sparsifiers()))
def test_so_are_those_of_what_is_made_sparse_and_held_back(sparsifier, method, models, monkeypatch):
    """Through every sparsifier and AIM, by merges of the whole kernel."""
    monkeypatch.setattr(kernel, "ARITHMETIC", torch.float64)
    work = Kernel(models.sources, "float64")
    recipe = aimed(sparse(random_recipe(models, method), sparsifier), lambda _: 0.4, 0.9)
    steps = plan(recipe, models.layout, models.sources)
    step = next(s for s in steps if s.tensor.name == "model.layers.0.self_attn.q_proj.weight")
    random = torch.Generator().manual_seed(5)
    gradient = torch.randn(step.tensor.shape, generator=random, dtype=torch.float64)
    found = gradients.CoefficientGradients(work, recipe)
    found.add(step, gradient)
    assert {key.parameter for key in found.sums()} == {"weight", "lambda"}
    arguments = step.rule.arguments
    for key, value in found.sums().items():
        keyword = step.rule.method.parameters[key.parameter].keyword
        ends = []
        for by in (2.0**-8, -(2.0**-8)):  # coefficients are float32, in which this is no rounding
            place = step.rule.experts.index(key.expert) if key.expert else None
            moved = (
                [v + by * (i == place) for i, v in enumerate(arguments[keyword])]
                if key.expert
                else arguments[keyword] + by
            )
            rule = replace(step.rule, arguments={**arguments, keyword: moved})
            merged = torch.empty(step.tensor.shape, dtype=torch.float64)
            work.fill(merged, replace(step, rule=rule), recipe.seed)
            ends.append((merged * gradient).sum().item())
        slope = (ends[0] - ends[1]) / 2.0**-7
        assert value == pytest.approx(slope, rel=1e-4), key
        assert value != 0


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_so_are_those_of_single_pieces(method, models, monkeypatch):
    """A piece's own number counts on its entries alone, one of the whole tensor on all."""
    monkeypatch.setattr(kernel, "ARITHMETIC", torch.float64)
    monkeypatch.setattr(gradients, "SLICE", 100)  # pieces' borders lie within slices
    work = Kernel(models.sources, "float64")
    recipe = random_recipe(models, method)
    pieces = [{"experts": {"math": {"weight": 0.1 + 0.25 * i}}} for i in range(3)]
    merges = [
        Merge.model_validate({**merge.model_dump(), "pieces": pieces}) for merge in recipe.merges
    ]
    recipe = recipe.model_copy(update={"merges": tuple(merges)})
    name = "model.layers.0.self_attn.q_proj.weight"

    def filled(recipe):
        step = next(s for s in plan(recipe, models.layout, models.sources) if s.tensor.name == name)
        merged = torch.empty(step.tensor.shape, dtype=torch.float64)
        work.fill(merged, step, recipe.seed)
        return step, merged

    step, merged = filled(recipe)
    random = torch.Generator().manual_seed(5)
    gradient = torch.randn(merged.shape, generator=random, dtype=torch.float64)
    found = gradients.CoefficientGradients(work, recipe)
    found.add(step, gradient)
    sums = found.sums()
    assert {key.piece for key in sums if key.expert == "math"} == {0, 1, 2}
    assert {key.piece for key in sums if key.expert != "math"} == {None}
    assert sums.keys() == {key for key in gradients.differentiable_in(recipe) if key.slot == 0}
    for key, value in sums.items():
        ends = []
        for by in (2.0**-8, -(2.0**-8)):
            moved = [_moved(merge, key, by) for merge in recipe.merges]
            ends.append(filled(recipe.model_copy(update={"merges": tuple(moved)}))[1])
        slope = ((ends[0] - ends[1]) * gradient).sum().item() / 2.0**-7
        # linear is not linear in its weights where they are normalised: the difference errs by h²
        assert value == pytest.approx(slope, rel=1e-3), key
        assert value != 0


def _moved(merge, key, by):
    """The merge with one of its numbers changed."""
    data = merge.model_dump()
    own = data if key.piece is None else data["pieces"][key.piece]
    values = own["parameters"] if key.expert is None else own["experts"][key.expert]
    values[key.parameter] += by
    return Merge.model_validate(data)
