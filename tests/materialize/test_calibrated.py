"""The kernel gives methods the calibration data of each tensor, and holds merges back (AIM)."""

from __future__ import annotations

import pytest
import torch
from merged_bytes import assert_same_bytes, resident_bytes, streamed_bytes
from merges import open_family, random_recipe, sparse

from evomerge.common.errors import NonFiniteError
from evomerge.materialize.gradients import CoefficientGradients
from evomerge.materialize.kernel import Kernel, matrix_index
from evomerge.materialize.plan import plan
from evomerge.methods.core.aim import aim_factors, aimed

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return open_family(
        tmp_path_factory.mktemp("family"), num_hidden_layers=1, dtype=torch.float32, spread=3.0
    )


def merged(models, recipe, **options):
    kernel, found = Kernel(models.sources, **options), {}
    for step in plan(recipe, models.layout, models.sources):
        found[step.tensor.name] = torch.empty(step.tensor.shape)
        kernel.fill(found[step.tensor.name], step, recipe.seed)
    return found


@pytest.mark.parametrize("name", ["task_arithmetic", "twin", "regmean"])
@pytest.mark.parametrize("sparsifier", [None, "fisher"])
def test_aim_holds_back_what_any_method_changes(models, name, sparsifier):
    plain = random_recipe(models, name)
    plain = plain if sparsifier is None else sparse(plain, sparsifier)
    whole, held = merged(models, plain), merged(models, aimed(plain, lambda _: 0.4, 0.9))
    base = models.sources["base"]
    for spec in models.layout.tensors:
        activation = base.calibration.read("mean_abs", spec.name)
        factors = 1.0 if activation is None else aim_factors(activation, 0.4, 0.9)
        own = base.read(spec.name)
        expected = own + (whole[spec.name] - own) * factors
        torch.testing.assert_close(held[spec.name], expected, rtol=0, atol=1e-6)
    assert not torch.equal(held[Q], whole[Q])
    open_ended = merged(models, aimed(plain, lambda _: 1.0))
    assert all(torch.equal(value, whole[tensor]) for tensor, value in open_ended.items())


@pytest.mark.parametrize("name", ["task_arithmetic", "ties"])
def test_what_is_held_back_has_the_same_bytes_in_slices_compiled_and_streamed(
    models, name, tmp_path
):
    recipe = aimed(sparse(random_recipe(models, name), "fisher"), lambda _: 0.3)
    expected = merged(models, recipe, compiled=False)
    for options in ({"compiled": False, "scratch": 1}, {"compiled": True}):
        found = merged(models, recipe, **options)
        assert all(torch.equal(value, expected[tensor]) for tensor, value in found.items())


def test_held_back_and_calibrated_merges_are_the_same_in_memory_and_streamed(tmp_path):
    half = open_family(tmp_path / "models", num_hidden_layers=1)
    for name in ("fisher", "task_arithmetic"):
        recipe = aimed(random_recipe(half, name), lambda _: 0.3)
        resident = resident_bytes(half, recipe)
        assert_same_bytes(resident, streamed_bytes(half, recipe, tmp_path / name))


def test_the_gradient_knows_what_is_held_back(models):
    recipe = aimed(random_recipe(models, "task_arithmetic"), lambda _: 0.3)
    [step] = [s for s in plan(recipe, models.layout, models.sources) if s.tensor.name == Q]
    gradient = torch.randn(step.tensor.shape, generator=torch.Generator().manual_seed(0))
    found = CoefficientGradients(Kernel(models.sources), recipe)
    found.add(step, gradient)
    base, math = (models.sources[name].read(Q) for name in ("base", "math"))
    factors = aim_factors(models.sources["base"].calibration.read("mean_abs", Q), 0.3)
    rule = step.rule
    expected = (gradient * (math - base) * factors).sum() * rule.arguments["lambda_"]
    own = {key.expert: value for key, value in found.sums().items() if key.parameter == "weight"}
    assert own["math"] == pytest.approx(float(expected), rel=1e-4)


def test_a_statistic_that_is_not_finite_is_named_where_it_spoils_a_merge(tmp_path):
    models = open_family(tmp_path / "models", num_hidden_layers=1, dtype=torch.float32)
    file = models.sources["math"].calibration
    broken = file.tensors[f"fisher/{Q}"].clone()
    broken[0, 0] = torch.inf
    file.tensors[f"fisher/{Q}"] = broken
    with pytest.raises(NonFiniteError, match=rf"{Q}: the fisher statistics of math hold infinity"):
        merged(models, random_recipe(models, "fisher"))


def test_a_matrix_of_a_stack_is_known_by_its_name():
    assert matrix_index("mlp.experts.down_proj", "mlp.experts.down_proj[3]") == 3
    assert matrix_index("mlp.experts.down_proj", "mlp.experts.down_proj") is None
