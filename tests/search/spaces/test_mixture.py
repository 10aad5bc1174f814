"""A space of smaller mixtures: how many experts, before what an inner space decides."""

import json

import numpy as np
import pytest
from mixtures import mixture

from evomerge.common.errors import InputError
from evomerge.config import SpaceConfig
from evomerge.models.layout import layout_of
from evomerge.recipe import Mixture, Recipe
from evomerge.search.spaces.build import build_space

DIGESTS = {"base": "0", "math": "1"}


@pytest.fixture(scope="module")
def layout():
    return layout_of(mixture())


def space(layout, digests=DIGESTS, calibration=None, weights=None, **keys):
    config = SpaceConfig.model_validate(
        {"mixture": keys, **({"weights": weights} if weights else {})}
    )
    return build_space(config, layout, digests, 1, calibration=calibration or {})


def test_one_gene_says_how_many_experts_the_base_keeps(layout):
    alone = space(layout, {"base": "0"}, experts=[2, 4])
    assert [gene.name for gene in alone.genes] == ["mixture.experts"]
    found = [alone.decode(np.array([unit])) for unit in (0.1, 0.5, 0.9)]
    assert [recipe.mixture for recipe in found] == [Mixture(experts=2), Mixture(experts=3), None]
    assert found[2].digest == alone.parents()["base"].digest
    assert alone.decode(alone.initial).mixture is None
    assert alone.decode(alone.point_of(alone.parents()["base"])).mixture is None
    assert alone.baselines() == {"2 experts": found[0]}


def test_beside_weights_the_experts_are_those_of_the_merge(layout):
    weights = {"method": "ties", "granularity": "model", "genes": {"weight": [0, 1.5]}}
    both = space(layout, experts=3, weights=weights)
    assert [gene.name for gene in both.genes] == ["weight.model.math"]
    recipe = both.decode(both.initial)
    assert recipe.mixture == Mixture(experts=3)
    assert {merge.method for merge in recipe.merges} == {"ties"}
    searched = space(layout, experts=[2, 4], weights=weights)
    assert [gene.name for gene in searched.genes] == ["mixture.experts", "weight.model.math"]
    assert {*searched.baselines()} > {"ties default", "2 experts"}
    assert {recipe.mixture for recipe in searched.parents().values()} == {None}


def test_groups_by_the_router_put_its_statistics_into_the_recipe(layout):
    routed = space(layout, experts=[2, 4], groups="router", calibration={"base": "c", "math": "d"})
    assert routed.decode(np.array([0.1])).calibration == {"base": "c"}


def test_free_layers_have_a_gene_for_every_expert_that_may_lead(layout):
    free = space(layout, {"base": "0"}, experts=2, per_layer="free")
    names = [f"mixture.lead.layer_{i}.expert_{j}" for i in range(2) for j in range(4)]
    assert [gene.name for gene in free.genes] == names
    assert list(free.cuts) == [0, 4]
    assert free.decode(free.initial).mixture == Mixture(experts=2)
    genome = np.array([0.9, 0.6, 0.8, 0.1, 0, 0.2, 0.3, 0.7])
    recipe = free.decode(genome)
    assert recipe.mixture == Mixture(experts=2, leads={0: (0, 2), 1: (3,)})
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))).digest == recipe.digest
    assert recipe.digest != free.decode(free.initial).digest
    searched = space(layout, {"base": "0"}, experts=[2, 4], per_layer="free")
    assert list(searched.cuts) == [0, 1, 5]
    assert [*searched.statistics(searched.initial)] == ["mixture.experts"]
    most = searched.decode(np.array([0.9, *genome]))
    assert most.digest == searched.parents()["base"].digest


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"experts": [2, 9]}, "space.mixture.experts: 9, but models.base has 4 experts a layer"),
        ({"experts": [1, 4]}, "1 experts are no mixture"),
        ({"experts": [4, 2]}, "cross"),
        ({"experts": 3}, "nothing to search"),
    ],
)
def test_numbers_that_cannot_be_are_refused(keys, message, layout):
    with pytest.raises((InputError, ValueError), match=message):
        space(layout, **keys)


def test_a_path_beside_a_mixture_is_refused():
    with pytest.raises(ValueError, match="leave path out"):
        SpaceConfig.model_validate({"mixture": {"experts": [2, 4]}, "path": {"kind": "slices"}})
