"""Recipes of mergekit become campaigns with genes around their values, beginning there."""

from __future__ import annotations

import pytest
from mergekit_files import RECIPES
from tiny import llama_config

from evomerge.common.errors import InputError
from evomerge.config import parse_campaign
from evomerge.mergekit import from_mergekit
from evomerge.mergekit.from_recipe import from_recipe
from evomerge.models.layout import derive_layout

LAYOUT = derive_layout(llama_config())
FITNESS = {"tasks": [{"task": "pick"}]}


def drafted(text, where="recipe.yml"):
    draft = from_recipe(from_mergekit(text, where), LAYOUT)
    parse_campaign({**draft.data, "fitness": FITNESS}, where)
    return draft


@pytest.mark.parametrize("name", RECIPES)
def test_each_form_is_a_campaign(name):
    data = drafted(RECIPES[name]).data
    assert data["models"]["base"] == (
        "org/math" if name in ("linear", "frankenmerge") else "org/base"
    )


def test_bounds_lie_around_the_values_and_each_experts_around_its_own():
    data = drafted(RECIPES["ties"]).data
    assert data["space"]["weights"] == {
        "method": "ties",
        "granularity": "model",
        "genes": {
            "weight": [0.0, 1.0],
            "density": [0.25, 0.75],
            "normalize": False,
            "weight.*.math": [0.0, 1.0],
            "weight.*.lang": [0.0, 0.8],
        },
    }
    assert data["initial"] == ["recipe.yml"]
    assert data["dtype"] == {"weights": "float16"}


def test_gradients_are_blocks_and_filters_modules():
    assert drafted(RECIPES["dare_ties_gradient"]).data["space"]["weights"]["granularity"] == "block"
    slerp = drafted(RECIPES["slerp_gradients"]).data["space"]["weights"]
    assert slerp == {"method": "slerp", "granularity": "module", "genes": {"t": [0.0, 1.0]}}


def test_a_negative_weight_may_become_more_so():
    text = RECIPES["ties"].replace("weight: 0.3", "weight: -0.3")
    assert drafted(text).data["space"]["weights"]["genes"]["weight.*.lang"] == [-0.8, 0.2]


def test_a_method_without_coefficients_gives_way_and_says_so():
    draft = drafted(RECIPES["model_stock"])
    assert draft.data["space"]["weights"]["method"] == "task_arithmetic"
    assert draft.data["initial"] == ["uniform"]
    assert any("model_stock has no coefficients" in text for text in draft.unmatched)


def test_slices_are_a_search_over_as_many():
    draft = drafted(RECIPES["frankenmerge"])
    path = draft.data["space"]["path"]
    assert path == {"kind": "slices", "count": 3, "sources": ["base", "lang"], "max_depth": 4}
    assert "initial" not in draft.data
    assert any("does not begin at the given ranges" in text for text in draft.unmatched)


def test_tokens_and_template_are_kept():
    text = (
        RECIPES["ties"]
        + "tokenizer: {source: union, pad_to_multiple_of: 64}\nchat_template: chatml\n"
    )
    tokenizer = drafted(text).data["models"]["tokenizer"]
    assert tokenizer["source"] == "union"
    assert tokenizer["pad_to_multiple_of"] == 64
    assert tokenizer["chat_template"] == "chatml"


def test_one_model_is_nothing_to_search():
    text = "merge_method: passthrough\nmodels: [{model: org/a}]\n"
    with pytest.raises(InputError, match="one model, so there is nothing to search"):
        drafted(text)
