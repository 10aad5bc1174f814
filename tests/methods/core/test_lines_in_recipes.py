from __future__ import annotations

import pytest
from layered_recipe import recipe_of

from evomerge.common.errors import InputError
from evomerge.methods.core.lines_in_recipes import scaled_by_depth


def lambdas(recipe):
    return [merge.parameters["lambda"] for merge in recipe.merges]


def test_lambda_grows_linearly_with_depth_and_is_alpha_outside_the_layers():
    scaled = scaled_by_depth(recipe_of(), 5, alpha=0.2, beta=0.8)
    assert lambdas(scaled) == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_recipes_own_lambda_is_multiplied_and_the_digest_tells():
    recipe = recipe_of(parameters={"lambda": 0.5})
    scaled = scaled_by_depth(recipe, 5, alpha=0.2, beta=0.8)
    assert lambdas(scaled) == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert scaled.digest != recipe.digest
    assert lambdas(recipe) == [0.5] * 6


def test_alpha_one_and_beta_zero_change_no_value():
    recipe = recipe_of(parameters={"lambda": 0.5})
    assert scaled_by_depth(recipe, 5, alpha=1.0, beta=0.0) == recipe


def test_a_single_layer_counts_as_the_first():
    assert lambdas(scaled_by_depth(recipe_of(layers=1), 1, 0.3, 0.7)) == [0.3, 0.3]


@pytest.mark.parametrize("method", ["linear", "slerp", "passthrough"])
def test_methods_without_a_task_vector_are_refused_by_name(method):
    with pytest.raises(InputError, match=f"embeddings: scaled by depth: {method} has no 'lambda'"):
        scaled_by_depth(recipe_of(method), 5, 0.2, 0.8)


def test_a_lambda_out_of_range_is_refused():
    with pytest.raises(InputError, match="lambda is 12, outside"):
        scaled_by_depth(recipe_of(), 5, 12.0, 0.0)
