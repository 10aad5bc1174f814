"""The merge method as a gene: for the whole model, or group by group."""

from __future__ import annotations

import numpy as np
import pytest
from spaces import DIGESTS, layout, space

from evomerge.common.errors import InputError
from evomerge.config import SpaceConfig, parse_campaign
from evomerge.recipe import Recipe
from evomerge.search.spaces.build import build_space

LIST = ["linear", "ties", "dare_ties"]
GENES = {"weight": [0, 1.5], "density": [0.2, 1], "linear.base_weight": [0, 1]}


def chosen(recipe):
    return {(m.slot, m.group): m.method for m in recipe.merges}


def random_genomes(s, count=20):
    return np.random.default_rng(0).random((count, s.dimension))


def test_one_gene_chooses_the_method_of_the_whole_model():
    s = space(LIST, genes=GENES)
    assert s.genes[0].name == "method"
    assert s.genes[0].choices == tuple(LIST)
    for u, method in ((0.1, "linear"), (0.5, "ties"), (0.9, "dare_ties")):
        genome = s.initial.copy()
        genome[0] = u
        assert set(chosen(s.decode(genome)).values()) == {method}


def test_each_group_may_have_a_method_of_its_own():
    s = space(LIST, genes=GENES, methods_per="group", granularity="module")
    names = [gene.name for gene in s.genes]
    at = names.index("method.layer_1.mlp")
    assert names[at + 1].startswith("weight.layer_1.mlp.")
    genome = s.initial.copy()
    genome[at] = 0.5
    found = chosen(s.decode(genome))
    assert found.pop((1, "mlp")) == "ties"
    assert set(found.values()) == {"linear"}


def test_genes_of_methods_not_chosen_are_inactive_and_change_nothing():
    s = space(LIST, genes=GENES)
    genome = s.initial.copy()
    genome[0] = 0.1
    params = s.params(genome)
    assert "weight.layer_0.math" in params
    assert "linear.base_weight.layer_0" in params
    assert not [name for name in params if name.startswith("density")]
    inactive = np.array([gene.name not in params for gene in s.genes])
    assert inactive.sum() == 2 * 6
    other = np.where(inactive, 0.123, genome)
    assert s.decode(other).digest == s.decode(genome).digest
    assert s.decode(np.where(inactive, genome, 0.123)).digest != s.decode(genome).digest


def test_a_plain_name_is_one_gene_for_all_methods_and_a_named_one_is_its_methods_own():
    s = space(["ties", "dare_ties"], genes={"density": [0.2, 1], "ties.density": [0.5, 0.9]})
    genes = {gene.name: gene for gene in s.genes}
    assert [c.values for c in genes["density.head.math"].when] == [("dare_ties",)]
    assert [c.values for c in genes["ties.density.head.math"].when] == [("ties",)]
    assert (genes["ties.density.head.math"].low, genes["ties.density.head.math"].high) == (0.5, 0.9)
    for u, density in ((0.0, 0.5), (1.0, 0.2)):
        genome = np.zeros(s.dimension)
        genome[0] = u
        [head] = [m for m in s.decode(genome).merges if m.group == "head"]
        assert head.experts["math"]["density"] == pytest.approx(density)


def test_values_and_patterns_reach_the_methods_they_name():
    genes = {
        "weight": [0, 1],
        "normalize": False,
        "ties.normalize": True,
        "ties.density": 0.25,
        "dare_ties.density": [0.1, 1],
        "dare_ties.density.head.*": 0.75,
    }
    s = space(LIST, genes=genes)
    found = {}
    for u in (0.1, 0.5, 0.9):
        genome = np.full(s.dimension, 0.5)
        genome[0] = u
        head = next(m for m in s.decode(genome).merges if m.group == "head")
        found[head.method] = (head.parameters["normalize"], head.experts["math"].get("density"))
    assert found == {"linear": (False, None), "ties": (True, 0.25), "dare_ties": (False, 0.75)}


@pytest.mark.parametrize("per", ["model", "group"])
@pytest.mark.parametrize("granularity", ["model", "block", "layer", "module", "tensor"])
@pytest.mark.parametrize("choose", [False, True])
def test_a_genomes_recipe_is_read_back_as_the_genome(per, granularity, choose):
    more = {"methods_per": per, "granularity": granularity, "choose_experts": choose}
    s = space(LIST, genes=GENES, **more)
    for genome in random_genomes(s):
        recipe = s.decode(genome)
        assert Recipe.from_json(recipe.to_json()).digest == recipe.digest
        if not recipe.merges:
            continue  # no expert is used, and nothing is told of the method
        again = s.encode(recipe)
        assert s.decode(again).digest == recipe.digest
        before, after = s.params(genome), s.params(again)
        assert before.keys() == after.keys()
        unused = {"math", "lang"} - {name for merge in recipe.merges for name in merge.experts}
        for name in before:
            if name.split(".")[-1] not in unused:
                assert after[name] == pytest.approx(before[name]), name


def test_statistics_tell_the_share_of_each_method_and_means_where_they_are_active():
    s = space(LIST, genes={"weight": [0, 1], "density": [0, 1]}, methods_per="group")
    params = {f"method.layer_{i}": "ties" for i in range(3)}
    params |= {f"density.layer_{i}.math": 0.3 for i in range(3)}
    params |= {"density.head.math": 0.9}
    found = s.statistics(s.genome_of(params))
    assert found["method.ties"] == 0.5
    assert found["method.linear"] == 0.5
    assert found["method.dare_ties"] == 0
    assert found["density.math"] == pytest.approx(0.3)
    assert s.statistics(s.initial)["density.math"] == 0


def test_every_method_has_its_default_and_uniform_merge_among_the_baselines():
    found = space(LIST, genes=GENES).baselines()
    assert set(found) == {
        *(f"{method} {kind}" for method in LIST for kind in ("default", "uniform")),
    }
    assert {m.method for m in found["dare_ties uniform"].merges} == {"dare_ties"}
    s = space(LIST, genes=GENES)
    assert s.decode(s.initial).digest == found["linear uniform"].digest


def test_cuts_stand_where_groups_begin_and_children_keep_whole_methods():
    s = space(LIST, genes=GENES, methods_per="group", choose_experts=True)
    names = [gene.name for gene in s.genes]
    assert [names[cut] for cut in s.cuts][:3] == ["use.math", "method.embeddings", "method.layer_0"]
    a, b = np.zeros(s.dimension), np.full(s.dimension, 0.99)
    split = s.cuts[3]
    methods = chosen(s.decode(s.recombine(b, a, split, 0.9)))
    assert methods[0, "layer"] == "dare_ties"
    assert methods[1, "layer"] == "linear"
    assert s.seeds == {}


def test_a_list_of_one_is_that_method():
    one, plain = space(["ties"]), space("ties")
    assert [g.name for g in one.genes] == [g.name for g in plain.genes]
    genome = np.linspace(0, 1, one.dimension)
    assert one.decode(genome).digest == plain.decode(genome).digest
    assert one.label == "ties"


def test_the_method_alone_may_be_searched():
    s = space(["linear", "ties"], genes={"normalize": True}, methods_per="group")
    assert {gene.kind for gene in s.genes} == {"categorical"}
    assert len({s.decode(g).digest for g in random_genomes(s)}) > 10


@pytest.mark.parametrize(
    ("method", "genes", "message"),
    [
        (LIST, {"wieght": [0, 1]}, "genes.wieght: none of linear, ties, dare_ties.*mean 'weight'"),
        (LIST, {"ties.base_weight": [0, 1]}, "ties has no parameter 'base_weight'"),
        (LIST, {"tise.density": [0, 1]}, "none of .*'tise'; did you mean 'ties'"),
        (LIST, {"ties.density": [0, 2]}, r"genes.ties.density is 2, outside \[0, 1\]"),
        (["linear", "tise"], {"weight": [0, 1]}, "space.weights.method: .*did you mean 'ties'"),
        (["ties"], {"ties.weight": [0, 1], "weight": [0, 1]}, "genes.weight: says nothing"),
        (LIST, {"weight": [0, 1], "density.head.*": [0, 1]}, "fits no gene"),
        (LIST, {"normalize": [0, 1]}, "not a number"),
    ],
)
def test_genes_that_fit_no_method_are_refused_by_name(method, genes, message):
    with pytest.raises(InputError, match=message):
        space(method, genes=genes)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"method": ["ties", "ties"]}, "ties is listed twice"),
        ({"method": []}, "method"),
        ({"method": "ties", "methods_per": "group"}, "needs a list of methods"),
        ({"method": ["ties", "linear"], "methods_per": "layer"}, "methods_per"),
    ],
)
def test_wrong_lists_of_methods_are_refused_by_key(weights, message):
    data = {
        "name": "n",
        "models": {"base": "b", "experts": {"math": "m"}},
        "space": {"weights": {"genes": {"weight": [0, 1]}, **weights}},
        "fitness": {"tasks": [{"task": "t"}]},
    }
    with pytest.raises(InputError, match=f"space.weights.*{message}"):
        parse_campaign(data, "campaign.yaml")


def test_a_file_without_a_list_says_of_itself_what_it_said_before():
    weights = {"method": "ties", "genes": {"weight": [0, 1]}}
    dumped = SpaceConfig(weights=weights).model_dump(mode="json")["weights"]
    assert "methods_per" not in dumped
    listed = {"method": ["ties", "linear"], "methods_per": "group", "genes": {"weight": [0, 1]}}
    assert SpaceConfig(weights=listed).model_dump(mode="json")["weights"]["methods_per"] == "group"


@pytest.mark.parametrize(
    ("method", "genes", "message"),
    [
        (
            ["linear", "dare_ties"],
            {**GENES, "normalize": False},
            "merges with ties; this space searches linear or dare",
        ),
        (LIST, {**GENES, "normalize": True}, "has normalize False where this space has True"),
    ],
)
def test_a_recipe_that_is_no_point_of_the_space_is_refused(method, genes, message):
    recipes = space(LIST, genes={**GENES, "normalize": False}, methods_per="group")
    genome = recipes.initial.copy()
    genome[[g.name == "method.head" for g in recipes.genes]] = 0.5
    with pytest.raises(InputError, match=message):
        space(method, genes=genes).encode(recipes.decode(genome))


def test_a_recipe_of_two_methods_is_no_point_of_a_space_with_one_for_the_model():
    apart = space(LIST, genes=GENES, methods_per="group")
    genome = apart.initial.copy()
    genome[[g.name == "method.head" for g in apart.genes]] = 0.5
    with pytest.raises(InputError, match=r"linear and ties, but.*'method' says one.*methods_per"):
        space(LIST, genes=GENES).encode(apart.decode(genome))
    coarse = space(LIST, genes=GENES, methods_per="group", granularity="block", block=3)
    genome[[g.name == "method.layer_1" for g in apart.genes]] = 0.5
    with pytest.raises(InputError, match=r"'method.layers_0_2' says one; write a finer gran"):
        coarse.encode(apart.decode(genome))


def test_a_path_over_a_merge_takes_each_layers_own_method_along():
    weights = {"method": LIST, "methods_per": "group", "genes": GENES, "granularity": "tensor"}
    config = SpaceConfig(weights=weights, path={"kind": "given", "layers": [0, 2, 2, 1]})
    s = build_space(config, layout(), DIGESTS, seed=1)
    params = {"method.layer_2.attn.w": "dare_ties", "density.layer_2.attn.w.math": 0.25}
    found = {(m.slot, m.group): m for m in s.decode(s.genome_of(params)).merges}
    for slot in (1, 2):
        assert found[slot, "attn.w"].method == "dare_ties"
        assert found[slot, "attn.w"].experts["math"]["density"] == pytest.approx(0.25)
    assert found[3, "attn.w"].method == "linear"
    assert s.label == "linear or ties or dare_ties × given"
