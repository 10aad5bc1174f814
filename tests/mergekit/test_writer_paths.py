"""Paths, and several methods in one recipe, as mergekit files that mergekit makes the same of."""

from __future__ import annotations

import pytest
import torch
import yaml
from mergekit_oracle import (
    assert_mergekit_agrees,
    assert_round_trip,
    digests,
    open_family,
    specs,
)

from evomerge.common.errors import InputError
from evomerge.mergekit import from_mergekit, to_mergekit
from evomerge.recipe import Merge, Recipe, Slot

LAYERS = 5


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """fp32, random and far apart, so that no two entries tie at a trim threshold."""
    return open_family(tmp_path_factory.mktemp("family"), spread=3.0)


def recipe_of(models, path, *merges):
    """`path` holds (source, layer) pairs, or layers of the base."""
    pairs = [(entry if isinstance(entry, tuple) else ("base", entry)) for entry in path]
    slots = tuple(Slot(source=source, layer=layer) for source, layer in pairs)
    return Recipe(sources=digests(models), path=slots, merges=merges)


def span(source, start, stop):
    return [(source, layer) for layer in range(start, stop)]


def copy_of(source, group, slot=None, **parameters):
    experts = {} if source == "base" else {source: {}}
    return Merge(
        slot=slot, group=group, method="passthrough", experts=experts, parameters=parameters
    )


def read_again(models, text):
    merge = from_mergekit(text)
    names = {spec: name for name, spec in specs(models).items()}
    known = {name: digests(models)[names[spec]] for name, spec in merge.models.items()}
    return merge.recipe(models.layout, known)


FRANKEN = [*span("base", 0, 4), *span("math", 2, 5), *span("base", 1, 5)]


def test_a_frankenmerge_is_passed_through_in_slices(models, tmp_path):
    recipe = recipe_of(models, FRANKEN)
    file = assert_mergekit_agrees(models, recipe, tmp_path, atol=0)
    data = yaml.safe_load(file.text)
    assert data["merge_method"] == "passthrough"
    ranges = [s["sources"][0]["layer_range"] for s in data["slices"]]
    assert ranges == [[0, 4], [2, 5], [1, 5]]
    again = read_again(models, file.text)
    assert again.path == recipe.path
    assert again.merges == ()


PATHS = {
    "reversed": [4, 3, 2, 1, 0],
    "one layer": [2],
    "each twice": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
    "two thirds": [("base", 0), ("math", 3), ("lang", 3), ("base", 4)],
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_any_order_of_layers_is_exactly_theirs_and_comes_back(models, tmp_path, path):
    recipe = recipe_of(models, path)
    file = assert_mergekit_agrees(models, recipe, tmp_path, atol=0)
    assert read_again(models, file.text).path == recipe.path


@pytest.mark.parametrize(
    "path", [span("math", 0, 5), [*span("base", 0, 3), *span("lang", 1, 5)]], ids=["first", "last"]
)
def test_where_mergekit_would_take_another_models_embeddings_or_head_weights_choose_them(
    models, tmp_path, path
):
    """Embeddings and head are the base's, but mergekit's passthrough takes the outer slices'."""
    recipe = recipe_of(models, path)
    file = assert_mergekit_agrees(models, recipe, tmp_path, atol=0)
    assert yaml.safe_load(file.text)["merge_method"] == "linear"
    again = read_again(models, file.text)
    assert [(s.source, s.layer) for s in again.path] == path
    assert again.merges == ()


def test_outer_tensors_of_the_outer_slices_models_need_no_weights(models, tmp_path):
    path = [*span("math", 0, 3), *span("lang", 1, 5)]
    outside = [("math", "embeddings"), ("lang", "final_norm"), ("lang", "head")]
    recipe = recipe_of(models, path, *(copy_of(s, g) for s, g in outside))
    file = assert_mergekit_agrees(models, recipe, tmp_path, atol=0)
    assert yaml.safe_load(file.text)["merge_method"] == "passthrough"
    assert_round_trip(models, recipe, tmp_path, file.text)


def test_scales_of_weights_are_passed_through(models, tmp_path):
    halves = [copy_of("base", "mlp", slot=i, scale=0.5) for i in (1, 4)]
    recipe = recipe_of(models, [0, 1, 2, 1, 2, 3, 4], *halves, copy_of("base", "head", scale=2.0))
    file = assert_mergekit_agrees(models, recipe, tmp_path)
    assert yaml.safe_load(file.text)["merge_method"] == "passthrough"
    assert_round_trip(models, recipe, tmp_path, file.text)


def test_attention_and_mlp_of_two_models_in_one_layer(models, tmp_path):
    recipe = recipe_of(models, [0, 1, 2, 1, 2, 3, 4], copy_of("lang", "mlp", slot=3))
    file = assert_mergekit_agrees(models, recipe, tmp_path, atol=0)
    assert_round_trip(models, recipe, tmp_path, file.text)


METHODS = {
    "linear": ({"base_weight": 0.5}, {"weight": 0.8}),
    "task_arithmetic": ({"lambda": 0.7}, {"weight": 0.8}),
    "ties": ({"lambda": 0.7}, {"weight": 0.8, "density": 0.4}),
    "slerp": ({"t": 0.3}, {}),
}


def merge(method, slot, group="layer", names=("math", "lang"), by=1.0):
    parameters, own = METHODS[method]
    return Merge(
        slot=slot,
        group=group,
        method=method,
        experts={name: {n: v * by for n, v in own.items()} for name in names},
        parameters={n: v * by for n, v in parameters.items()},
    )


@pytest.mark.parametrize("method", METHODS)
def test_merged_layers_are_repeated_each_with_its_own_weights(models, tmp_path, method):
    path = [0, 1, 2, 1, 2, 3, 2, 3, 4]
    merges = [merge(method, i, by=1 - i / 20) for i in range(len(path))]
    merges += [merge(method, None, group) for group in ("embeddings", "final_norm", "head")]
    recipe = recipe_of(models, path, *merges)
    file = assert_mergekit_agrees(models, recipe, tmp_path)
    assert not file.stages
    assert_round_trip(models, recipe, tmp_path, file.text)


def test_a_method_on_a_part_of_a_path_leaves_copies_elsewhere(models, tmp_path):
    path = [*span("base", 0, 3), *span("lang", 2, 5), ("base", 4)]
    some = [merge("ties", 1, "mlp"), merge("ties", 4), merge("ties", None, "head", ("math",))]
    file = assert_mergekit_agrees(models, recipe_of(models, path, *some), tmp_path)
    assert any("rounding" in caveat for caveat in file.caveats)


STAGES = {
    "two methods": (list(range(5)), [merge("linear", 0), merge("ties", 1)]),
    "within a layer": (
        list(range(5)),
        [merge("linear", 0, "attention"), merge("ties", 0, "mlp"), merge("slerp", None, "head")],
    ),
    "on a path with copies": (
        [*span("base", 0, 3), *span("lang", 1, 5)],
        [merge("task_arithmetic", 1), merge("ties", 4, "mlp"), copy_of("math", "norms", slot=5)],
    ),
    "pairs of slerp": (
        list(range(5)),
        [merge("slerp", 0, names=("math",)), merge("slerp", 1, names=("lang",))],
    ),
    "a copy that slerp cannot make": (
        [*span("base", 0, 3), ("lang", 3), ("base", 4)],
        [merge("slerp", 0, names=("math",))],
    ),
    "a scale that ties has no word for": (
        list(range(5)),
        [merge("ties", 0), copy_of("base", "mlp", slot=1, scale=0.5)],
    ),
}


@pytest.mark.parametrize(("path", "merges"), STAGES.values(), ids=STAGES)
def test_several_methods_are_stages_for_mergekit_multi(models, tmp_path, path, merges):
    file = assert_mergekit_agrees(models, recipe_of(models, path, *merges), tmp_path)
    assert file.stages
    assert file.command.startswith("mergekit-multi ")
    documents = list(yaml.safe_load_all(file.text))
    assert [("name" in document) for document in documents][-2:] == [True, False]
    with pytest.raises(InputError, match="one stage of"):
        from_mergekit(file.text)


def test_input_scales_are_refused_with_the_reason(models):
    path = (Slot(source="base", layer=0), Slot(source="base", layer=1, scale=0.5))
    recipe = Recipe(sources=digests(models), path=path)
    with pytest.raises(InputError, match=r"path\[1\] multiplies its input by 0\.5, .*recipe\.json"):
        to_mergekit(recipe, models.layout, specs(models), "float32")


def test_tied_models_are_stacked_too(tmp_path):
    models = open_family(tmp_path / "m", tie_word_embeddings=True)
    assert_mergekit_agrees(models, recipe_of(models, FRANKEN), tmp_path, atol=0)


def test_bf16_layers_are_passed_through_bit_for_bit(tmp_path):
    models = open_family(tmp_path / "m", dtype=torch.bfloat16)
    assert_mergekit_agrees(models, recipe_of(models, FRANKEN), tmp_path, "bfloat16", atol=0)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_tensors_tuned_apart_are_told_apart_by_filters(models, tmp_path, method):
    path = [0, 1, 2, 1, 2, 3, 4]
    names = ["self_attn.q_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight"]
    merges = [merge(method, i) for i in range(len(path))]
    merges += [
        merge(method, i, name, by=0.2 + i / 20 + n / 10)
        for i in range(0, len(path), 2)
        for n, name in enumerate(names)
    ]
    recipe = recipe_of(models, path, *merges)
    file = assert_mergekit_agrees(models, recipe, tmp_path)
    assert_round_trip(models, recipe, tmp_path, file.text)
