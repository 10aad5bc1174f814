"""Recipes written as mergekit files: mergekit makes the same tensors of them, or we say why not."""

from __future__ import annotations

import pytest
import torch
import yaml
from mergekit_oracle import (
    assert_mergekit_agrees,
    assert_round_trip,
    digests,
    merged_by_mergekit,
    open_family,
    specs,
    tensors_in,
)
from merges import thin
from safetensors.torch import save_file

from evomerge.common.errors import InputError
from evomerge.config import SpaceConfig
from evomerge.mergekit import to_mergekit
from evomerge.recipe import Merge, Recipe, Slot
from evomerge.search.spaces.weights import WeightSpace

LAYERS = 5


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """fp32, random and far apart, so that no two entries tie at a trim threshold."""
    return open_family(tmp_path_factory.mktemp("family"), spread=3.0)


GENES = {
    "linear": {"weight": [0.1, 1.5], "base_weight": [0.1, 1]},
    "task_arithmetic": {"weight": [-0.5, 1.5], "lambda": [0.5, 1.5]},
    "ties": {"weight": [0.1, 1.5], "density": [0.2, 1], "lambda": [0.5, 1.5]},
    "slerp": {"t": [0, 1]},
    "dare_linear": {"weight": [0, 1], "density": [0.2, 0.9]},
}


def some_recipe(models, method, granularity="module", seed=5, **fixed):
    genes = {**GENES[method], **fixed}
    config = SpaceConfig(weights={"method": method, "granularity": granularity, "genes": genes})
    space = WeightSpace(config, models.layout, digests(models), seed=3)
    generator = torch.Generator().manual_seed(seed)
    return space.decode(torch.rand(space.dimension, generator=generator).double().numpy())


@pytest.mark.parametrize("granularity", ["model", "layer", "module", "tensor"])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_mergekit_makes_the_same_tensors_of_the_file(models, tmp_path, method, granularity):
    recipe = some_recipe(models, method, granularity)
    file = assert_mergekit_agrees(models, recipe, tmp_path)
    assert_round_trip(models, recipe, tmp_path, file.text)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_normalize_is_written_because_the_tools_defaults_differ(
    models, tmp_path, method, normalize
):
    recipe = some_recipe(models, method, "layer", normalize=normalize)
    file = assert_mergekit_agrees(models, recipe, tmp_path)
    assert yaml.safe_load(file.text)["parameters"]["normalize"] is normalize


def test_pieces_of_tensors_are_more_than_mergekit_can_say(models):
    recipe = some_recipe(models, "linear")
    first, *others = recipe.merges
    pieces = [{"experts": {"math": {"weight": share}}} for share in (0.1, 0.2)]
    cut = Merge.model_validate({**first.model_dump(), "pieces": pieces})
    with pytest.raises(InputError, match="mergekit has one coefficient for a whole tensor"):
        to_mergekit(
            recipe.model_copy(update={"merges": (cut, *others)}),
            models.layout,
            specs(models),
            "float32",
        )


def test_slerp_joins_the_base_and_the_one_expert(tmp_path):
    models = open_family(tmp_path / "m", experts=("math",))
    recipe = some_recipe(models, "slerp")
    file = assert_mergekit_agrees(models, recipe, tmp_path)
    assert file.caveats == ()
    assert_round_trip(models, recipe, tmp_path, file.text)


def test_slerp_between_two_experts_says_whose_tokenizer_mergekit_takes(models, tmp_path):
    file = assert_mergekit_agrees(models, some_recipe(models, "slerp"), tmp_path)
    assert yaml.safe_load(file.text)["base_model"] == specs(models)["math"]
    assert file.caveats == ("config and tokenizer are taken from math, not from the base",)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_bf16_results_differ_by_no_more_than_one_rounding(tmp_path, method):
    models = open_family(tmp_path / "m", dtype=torch.bfloat16)
    recipe = (
        some_recipe(models, method, density=1.0)
        if method == "ties"
        else some_recipe(models, method)
    )
    assert_mergekit_agrees(models, recipe, tmp_path, "bfloat16", rtol=2**-7, atol=1e-9)


def test_parents_are_whole_models_to_mergekit(models, tmp_path):
    space = WeightSpace(
        SpaceConfig(weights={"method": "linear", "genes": GENES["linear"]}),
        models.layout,
        digests(models),
        seed=0,
    )
    for name, recipe in space.parents().items():
        file = assert_mergekit_agrees(models, recipe, tmp_path / name, atol=0)
        data = yaml.safe_load(file.text)
        assert data["merge_method"] == "passthrough"
        assert data["models"] == [{"model": specs(models)[name]}]


@pytest.mark.parametrize(
    ("method", "theirs"), [("task_arithmetic", "dare_linear"), ("ties", "dare_ties")]
)
def test_a_random_drop_is_written_where_a_dare_method_is_the_same(models, method, theirs):
    fixed = {"density": 1.0} if method == "ties" else {}
    recipe = thin(some_recipe(models, method, "model", **fixed), 0.4)
    file = to_mergekit(recipe, models.layout, specs(models), "float32")
    data = yaml.safe_load(file.text)
    assert data["merge_method"] == theirs
    experts = [model for model in data["models"] if "parameters" in model]
    assert [model["parameters"]["density"] for model in experts] == [0.4, 0.4]
    assert any("mask" in caveat or "random" in caveat for caveat in file.caveats)


@pytest.mark.parametrize(("method", "rescale"), [("ties", "l1"), ("task_arithmetic", "none")])
def test_another_random_drop_is_refused(models, method, rescale):
    recipe = thin(some_recipe(models, method, "model"), 0.4, rescale)
    with pytest.raises(InputError, match=f"drops entries at random before {method}"):
        to_mergekit(recipe, models.layout, specs(models), "float32")


def recipe_of(models, *merges, path=None):
    slots = [Slot(source=source, layer=i) for i, source in enumerate(path or ["base"] * LAYERS)]
    return Recipe(sources=digests(models), path=tuple(slots), merges=merges)


SWAP = ["base", "math", "math", "lang", "base"]


def test_layers_copied_from_several_sources_are_exactly_theirs(models, tmp_path):
    half = Merge(
        slot=None,
        group="head",
        method="passthrough",
        experts={"lang": {}},
        parameters={"scale": 0.5},
    )
    assert_mergekit_agrees(models, recipe_of(models, half, path=SWAP), tmp_path, atol=0)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_a_method_on_some_modules_leaves_copies_elsewhere(models, tmp_path, method):
    weights = {"weight": 0.4, "density": 0.3} if method == "ties" else {"weight": 0.4}
    some = [
        Merge(slot=1, group="mlp", method=method, experts={"math": weights}),
        Merge(slot=2, group="layer", method=method, experts={"math": weights, "lang": weights}),
        Merge(slot=None, group="final_norm", method=method, experts={"lang": weights}),
    ]
    file = assert_mergekit_agrees(models, recipe_of(models, *some, path=SWAP), tmp_path)
    assert any("rounding" in caveat for caveat in file.caveats) is (method != "linear")


def test_tied_embeddings_are_written_once_and_the_same(tmp_path):
    models = open_family(tmp_path / "m", tie_word_embeddings=True)
    assert_mergekit_agrees(models, some_recipe(models, "task_arithmetic"), tmp_path)


def test_a_stored_copy_of_tied_embeddings_stays_their_equal(tmp_path):
    models = open_family(tmp_path / "m", tie_word_embeddings=True)
    for source in models.sources.values():
        tensors = tensors_in(source.folder)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, source.folder / "model.safetensors", metadata={"format": "pt"})
    file = to_mergekit(
        some_recipe(models, "task_arithmetic"), models.layout, specs(models), "float32"
    )
    theirs = merged_by_mergekit(file.text, tmp_path / "theirs")
    assert torch.equal(theirs["lm_head.weight"], theirs["model.embed_tokens.weight"])


@pytest.mark.parametrize("layers", [1, 23])
def test_densities_survive_where_mergekits_gradient_is_not_exact(tmp_path, layers):
    """Layer 15 of 23: mergekit interpolates 0.5 to 0.4999…, and trims one entry more."""
    models = open_family(tmp_path / "m", num_hidden_layers=layers)
    densities = {layer: 0.5 if layer == 15 else 0.25 for layer in range(layers)}
    merges = [
        Merge(slot=i, group="layer", method="ties", experts={"math": {"weight": 1.0, "density": d}})
        for i, d in densities.items()
    ]
    recipe = recipe_of(models, *merges, path=["base"] * layers)
    assert_mergekit_agrees(models, recipe, tmp_path)


def test_what_may_differ_is_said(models):
    def caveats(method, **fixed):
        recipe = some_recipe(models, method, **fixed)
        return to_mergekit(recipe, models.layout, specs(models), "float32").caveats

    assert caveats("linear") == caveats("task_arithmetic") == caveats("ties", density=1.0) == ()
    assert "trim threshold" in caveats("ties")[0]
    assert "masks are random" in caveats("dare_linear")[0]


def test_a_path_that_mergekit_would_split_is_refused(models):
    recipe = some_recipe(models, "linear")
    with pytest.raises(InputError, match=r"reads '\+' and '@' in the path /a\+b"):
        to_mergekit(recipe, models.layout, {**specs(models), "math": "/a+b"}, "float32")
