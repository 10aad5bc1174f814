"""DARE over any method: merged is what a random drop leaves of the task vectors."""

from __future__ import annotations

import pytest
import torch
from merged_bytes import assert_same_bytes, resident_bytes, streamed_bytes
from merges import open_family, random_recipe, thin
from written_merges import written

from evomerge.common.errors import InputError
from evomerge.materialize.plan import plan
from evomerge.materialize.statistics.statistics import Statistics
from evomerge.methods import methods
from evomerge.methods.core.dare_in_recipes import as_dare_method
from evomerge.methods.core.masks import at, limits

TAKEN = [name for name, m in methods().items() if "lambda" in m.parameters and not m.needs_position]
ELEMENTWISE = [name for name in TAKEN if methods()[name].elementwise]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return open_family(tmp_path_factory.mktemp("family"), spread=3.0)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """float32, where every rounding shows; slices of more than one tensor."""
    folder = tmp_path_factory.mktemp("wide")
    return open_family(
        folder, hidden_size=160, intermediate_size=192, num_hidden_layers=1, dtype=torch.float32
    )


def assert_equal_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for tensor, value in theirs.items():
        assert ours[tensor].view(torch.int32).equal(value.view(torch.int32)), tensor


def untrimmed(recipe):
    merges = [
        merge.model_copy(
            update={"experts": {e: {**v, "density": 1.0} for e, v in merge.experts.items()}}
        )
        for merge in recipe.merges
    ]
    return recipe.model_copy(update={"merges": tuple(merges)})


@pytest.mark.parametrize("rescale", ["density", "l1"])
@pytest.mark.parametrize(
    ("method", "own"), [("task_arithmetic", "dare_linear"), ("ties", "dare_ties")]
)
@torch.no_grad()
def test_over_task_arithmetic_and_untrimmed_ties_it_is_the_dare_methods_to_the_byte(
    wide, method, own, rescale
):
    recipe = random_recipe(wide, method)
    recipe = thin(untrimmed(recipe) if method == "ties" else recipe, 0.37, rescale)
    merges = tuple(as_dare_method(merge) for merge in recipe.merges)
    assert {merge.method for merge in merges} == {own}
    _, expected = written(wide, recipe.model_copy(update={"merges": merges}))
    _, found = written(wide, recipe)
    assert_equal_bits(found, expected)


@pytest.mark.parametrize("name", TAKEN)
@torch.no_grad()
def test_what_is_left_of_the_experts_is_merged_as_if_it_were_theirs(wide, name):
    """A method called by hand in float64 on experts that were thinned out by hand."""
    density = 0.5
    recipe = thin(random_recipe(wide, name), density)
    _, found = written(wide, recipe)
    [limit] = limits([density])
    for step in plan(recipe, wide.layout, wide.sources):
        tensor, rule = step.tensor.name, step.rule
        base, *experts = (wide.sources[source].read(tensor).double() for source in step.reads)
        place = at(recipe.seed, tensor, rule.experts)
        left = [
            base + (e - base) * place.keep(i, e.view(-1), limit).view(e.shape) / density
            for i, e in enumerate(experts)
        ]
        expected = rule.method(base, left, **rule.arguments)
        wrong = (found[tensor].double() - expected).abs() > 1e-5 + 1e-4 * expected.abs()
        assert wrong.double().mean() < 0.01, tensor  # entries at a trim's threshold may change side


@pytest.mark.parametrize("name", TAKEN)
def test_resident_and_streamed_weights_are_the_same_bytes(models, name, tmp_path):
    recipe = thin(random_recipe(models, name))
    resident = resident_bytes(models, recipe)
    assert_same_bytes(resident, streamed_bytes(models, recipe, tmp_path / "o"))
    plain = resident_bytes(models, random_recipe(models, name))
    moved = any(not v.equal(models.sources["base"].read(t)) for t, v in plain.items())
    assert any(not resident[tensor].equal(value) for tensor, value in plain.items()) is moved


@pytest.mark.parametrize("name", ELEMENTWISE)
@torch.no_grad()
def test_bytes_depend_neither_on_slices_nor_on_threads(wide, name):
    recipe = thin(random_recipe(wide, name))
    _, expected = written(wide, recipe, compiled=False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        _, sliced = written(wide, recipe, compiled=False, scratch=1)
    finally:
        torch.set_num_threads(threads)
    assert_equal_bits(sliced, expected)


@pytest.mark.parametrize("name", TAKEN)
@torch.no_grad()
def test_at_density_one_it_is_the_bare_method(wide, name):
    recipe = random_recipe(wide, name)
    data = recipe.to_json()
    for merge in data["merges"]:
        merge["drop"] = {"density": 1.0}
    _, expected = written(wide, recipe)
    _, found = written(wide, type(recipe).from_json(data))
    assert_equal_bits(found, expected)


@torch.no_grad()
def test_statistics_of_the_sources_are_neither_used_nor_made(wide):
    kept = Statistics()
    written(wide, random_recipe(wide, "ties"), statistics=kept)
    before = kept.nbytes
    assert before > 0
    recipe = thin(random_recipe(wide, "ties"))
    _, found = written(wide, recipe, statistics=kept)
    fresh, expected = written(wide, recipe, statistics=Statistics())
    assert_equal_bits(found, expected)
    assert (kept.nbytes, fresh.statistics.nbytes) == (before, 0)


@torch.no_grad()
def test_without_rescaling_survivors_stay_as_they_are(wide):
    recipe = thin(random_recipe(wide, "task_arithmetic"), 0.5, "none")
    _, found = written(wide, recipe)
    _, doubled = written(wide, thin(random_recipe(wide, "task_arithmetic"), 0.5))
    for tensor, value in found.items():
        base = wide.sources["base"].read(tensor)
        torch.testing.assert_close((value - base) * 2, doubled[tensor] - base, rtol=0, atol=1e-6)


def test_a_recipe_that_thins_out_what_has_no_task_vectors_is_refused(models):
    data = random_recipe(models, "slerp").to_json()
    data["merges"][0]["drop"] = {"density": 0.5}
    recipe = type(random_recipe(models, "slerp")).from_json(data)
    with pytest.raises(InputError, match="drop: slerp has no task vectors"):
        plan(recipe, models.layout, models.sources)
