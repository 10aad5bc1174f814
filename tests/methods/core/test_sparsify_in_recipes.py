from __future__ import annotations

import pytest
from layered_recipe import recipe_of
from merges import sparse, thin

from evomerge.common.errors import InputError
from evomerge.methods import methods
from evomerge.methods.core.lines_in_recipes import scaled_by_depth
from evomerge.methods.core.sparsify_in_recipes import as_one_method, sparsified
from evomerge.recipe import Drop, Merge, Recipe

ITSELF_RANDOM = ["dare_linear", "dare_ties", "della", "della_linear"]
WITHOUT_TASK_VECTORS = ["linear", "passthrough", "slerp"]


def test_every_merge_has_its_drop_and_the_recipe_the_seed():
    found = sparsified(
        recipe_of(), "dare", lambda m: 0.5 if m.slot is None else 0.25, {"rescale": "l1"}, seed=7
    )
    assert [m.drop.density for m in found.merges] == [0.5, *[0.25] * 5]
    assert {m.drop.rescale for m in found.merges} == {"l1"}
    assert found.seed == 7
    assert Recipe.from_json(found.to_json()) == found


def test_the_digest_tells_density_rescaling_and_seed_apart():
    recipe = recipe_of()
    others = [thin(recipe), thin(recipe, 0.4), thin(recipe, rescale="none")]
    others.append(thin(recipe, seed=8))
    assert len({recipe.digest, *(other.digest for other in others)}) == 5


def test_a_recipe_without_a_drop_says_nothing_of_it():
    """Recipes of earlier studies keep their digests."""
    recipe = recipe_of()
    assert all("drop" not in merge for merge in recipe.to_json()["merges"])
    assert recipe.digest == "6934775110b66625fbca17b2d86d57b0"
    assert thin(recipe, 1.0) is recipe


def test_lines_and_dare_go_together():
    scaled = scaled_by_depth(thin(recipe_of()), 5, alpha=0.2, beta=0.8)
    assert scaled.merges[-1].parameters["lambda"] == pytest.approx(1.0)
    assert scaled.merges[-1].drop == Drop(density=0.3)


@pytest.mark.parametrize("name", methods())
def test_of_all_methods_those_without_task_vectors_and_random_ones_are_refused(name):
    if name in WITHOUT_TASK_VECTORS:
        with pytest.raises(InputError, match=f"embeddings: drop: {name} has no task vectors"):
            thin(recipe_of(name))
    elif name in ITSELF_RANDOM:
        with pytest.raises(InputError, match=f"{name} drops entries at random itself"):
            thin(recipe_of(name))
    else:
        assert thin(recipe_of(name)).merges[0].drop == Drop(density=0.3)


def test_a_random_sparsifier_before_a_random_method_is_refused_and_no_other():
    for name in ITSELF_RANDOM:
        with pytest.raises(InputError, match=f"sparsify: {name} drops entries at random itself"):
            sparse(recipe_of(name), "della")
        assert sparse(recipe_of(name), "magnitude").merges[0].sparsify.kind == "magnitude"


def test_sparsify_dare_is_read_as_the_drop_that_earlier_recipes_have():
    data = thin(recipe_of()).to_json()
    assert all("sparsify" not in merge for merge in data["merges"])
    for merge in data["merges"]:
        merge["sparsify"] = {"kind": "dare", **merge.pop("drop")}
    assert Recipe.from_json(data) == thin(recipe_of())
    assert Recipe.from_json(data).digest == thin(recipe_of()).digest


@pytest.mark.parametrize("kind", ["magnitude", "breadcrumbs", "della"])
def test_other_sparsifiers_are_part_of_the_digest_and_only_random_ones_of_the_seed(kind):
    recipe = recipe_of()
    found = sparse(recipe, kind, seed=11)
    assert Recipe.from_json(found.to_json()) == found
    assert len({recipe.digest, found.digest, sparse(recipe, kind, 0.4, seed=11).digest}) == 3
    assert (found.seed == 11) is (kind == "della")


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ({"drop": {"density": 0.5}, "sparsify": {"kind": "magnitude", "density": 0.5}}, "once"),
        ({"drop": {"density": 0.5}, "sparsify": {"kind": "dare", "density": 0.5}}, "give one"),
        ({"sparsify": {"kind": "magnitude", "density": 0.0}}, "more than 0"),
        ({"sparsify": {"kind": "magnitude", "density": 0.5, "gamma": 0.1}}, "gamma"),
        ({"sparsify": {"kind": "trim", "density": 0.5}}, "'magnitude', 'breadcrumbs', 'della'"),
    ],
)
def test_a_sparsifier_that_is_none_is_refused(merge, message):
    data = recipe_of().to_json()
    data["merges"][0] |= merge
    with pytest.raises(InputError, match=message):
        Recipe.from_json(data)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_a_density_that_is_no_share_is_refused(density):
    data = recipe_of().to_json()
    data["merges"][0]["drop"] = {"density": density}
    with pytest.raises(InputError, match=r"merges\.0\.drop\.density"):
        Recipe.from_json(data)


def merge_of(method, rescale="density", **values):
    return Merge(
        slot=0,
        group="layer",
        method=method,
        experts={"a": {"weight": 0.5, **values}},
        drop=Drop(density=0.3, rescale=rescale),
    )


def test_before_task_arithmetic_and_untrimmed_ties_it_is_a_method_of_its_own():
    found = as_one_method(merge_of("task_arithmetic", "l1"))
    assert (found.method, found.drop, found.parameters) == ("dare_linear", None, {"rescale": "l1"})
    assert found.experts == {"a": {"weight": 0.5, "density": 0.3}}
    assert as_one_method(merge_of("ties", density=1.0)).method == "dare_ties"


@pytest.mark.parametrize(
    "merge",
    [
        merge_of("ties"),
        merge_of("ties", density=0.9),
        merge_of("magmax"),
        merge_of("task_arithmetic", "none"),
    ],
)
def test_before_others_it_is_none(merge):
    assert as_one_method(merge) is None
