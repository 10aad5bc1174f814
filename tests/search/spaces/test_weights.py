from __future__ import annotations

import numpy as np
import pytest
from spaces import DIGESTS, space

from evomerge.common.errors import InputError


@pytest.mark.parametrize(
    ("granularity", "tied", "count"),
    [("model", False, 1), ("layer", False, 6), ("layer", True, 5), ("module", False, 12)],
)
def test_one_gene_per_group_and_expert(granularity, tied, count):
    assert space(granularity=granularity, tied=tied).dimension == 2 * count


def test_genes_run_from_the_embeddings_to_the_head():
    names = [gene.name for gene in space(genes={"weight": [0, 1], "density": [0.2, 1]}).genes]
    assert names[:4] == [
        "weight.embeddings.math",
        "weight.embeddings.lang",
        "density.embeddings.math",
        "density.embeddings.lang",
    ]
    assert names[4] == "weight.layer_0.math"
    assert names[-1] == "density.head.lang"
    assert len(set(names)) == len(names)


def test_shared_parameters_have_one_gene_per_group():
    names = [gene.name for gene in space(genes={"lambda": [0, 2]}).genes]
    groups = ("embeddings", "layer_0", "layer_1", "layer_2", "final_norm", "head")
    assert names == [f"lambda.{group}" for group in groups]


def test_decode_puts_each_gene_where_its_name_says():
    s = space(genes={"weight": [0, 1.5], "density": 0.25, "lambda": [0, 2]})
    genome = np.linspace(0, 1, s.dimension)
    recipe, params = s.decode(genome), s.params(genome)
    merges = {(m.slot, m.group): m for m in recipe.merges}
    layer = merges[(1, "layer")]
    assert layer.experts["lang"]["weight"] == params["weight.layer_1.lang"]
    assert layer.experts["lang"]["density"] == 0.25
    assert layer.parameters == {"lambda": params["lambda.layer_1"], "normalize": True}
    head = merges[(None, "head")]
    assert head.experts["math"]["weight"] == params["weight.head.math"]
    assert [slot.layer for slot in recipe.path] == [0, 1, 2]
    assert recipe.seed == 0, "nothing random is in it"
    drawn = space("dare_ties")
    assert drawn.decode(drawn.initial).seed == 1


def test_equal_genomes_have_equal_digests_and_others_do_not():
    s = space()
    genome = np.full(s.dimension, 0.3)
    other = genome.copy()
    other[-1] += 1e-9
    assert s.decode(genome).digest == s.decode(genome.copy()).digest
    assert s.decode(genome).digest != s.decode(other).digest


def test_genomes_outside_the_unit_cube_are_clipped():
    s = space()
    assert s.decode(np.full(s.dimension, 1.2)).digest == s.decode(np.ones(s.dimension)).digest


def test_the_initial_genome_decodes_to_the_uniform_merge():
    s = space(genes={"weight": [0, 1.5], "density": [0.0, 1.0]})
    assert s.decode(s.initial).digest == s.baselines()["ties uniform"].digest


def test_baselines_are_distinct_and_named():
    assert list(space().baselines()) == ["ties default", "ties uniform", "average"]
    slerp = space("slerp", genes={"t": [0, 1]}).baselines()
    assert list(slerp) == ["slerp default", "ties default", "average"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "tise"}, "space.weights.method: .*did you mean 'ties'"),
        ({"genes": {"wieght": [0, 1]}}, "space.weights.genes: ties has no parameter 'wieght'"),
        ({"genes": {"density": [0, 2]}}, r"space.weights.genes.density is 2, outside \[0, 1\]"),
        ({"genes": {"weight": 0.5}}, "nothing to search"),
        ({"genes": {"normalize": [0, 1]}}, "normalize"),
        (
            {"method": "slerp", "genes": {"t": [0, 1]}, "digests": {**DIGESTS, "art": "3"}},
            "slerp merges 1 to 2 experts, not 3",
        ),
    ],
)
def test_a_space_that_does_not_fit_the_method_is_refused(kwargs, message):
    with pytest.raises(InputError, match=message):
        space(**kwargs)


def test_blocks_of_layers_are_tuned_together_and_the_last_may_be_short():
    s = space(granularity="block", block=2, genes={"lambda": [0, 2]})
    names = [gene.name for gene in s.genes]
    blocks = ["lambda.layers_0_1", "lambda.layers_2_2"]
    assert names == ["lambda.embeddings", *blocks, "lambda.final_norm", "lambda.head"]
    genome = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    lambdas = {
        m.slot: m.parameters["lambda"] for m in s.decode(genome).merges if m.slot is not None
    }
    assert lambdas == {0: 0.4, 1: 0.4, 2: 0.6}


def test_single_genes_have_their_own_bounds_scale_or_value():
    s = space(
        genes={
            "weight": [0, 1.5],
            "weight.layer_*.math": [0.5, 1],
            "weight.layer_1.math": 0.25,
            "density": {"low": 0.01, "high": 1, "log": True},
        }
    )
    genes = {gene.name: gene for gene in s.genes}
    assert (genes["weight.layer_0.math"].low, genes["weight.layer_0.math"].high) == (0.5, 1)
    assert genes["weight.layer_0.lang"].high == 1.5
    assert "weight.layer_1.math" not in genes
    assert genes["density.head.math"].value(0.5) == pytest.approx(0.1)
    recipe = s.decode(np.full(s.dimension, 0.5))
    [layer] = [m for m in recipe.merges if m.slot == 1]
    assert layer.experts["math"]["weight"] == 0.25
    assert layer.experts["lang"]["weight"] == 0.75


def test_an_expert_that_a_genome_leaves_out_is_in_no_merge():
    s = space(choose_experts=True)
    assert [gene.name for gene in s.genes[:2]] == ["use.math", "use.lang"]
    assert s.cuts[:2] == [0, 2]
    genome = s.initial.copy()
    assert all(set(m.experts) == {"math", "lang"} for m in s.decode(genome).merges)
    genome[0] = 0.0
    assert s.params(genome)["use.math"] is False
    assert {name for m in s.decode(genome).merges for name in m.experts} == {"lang"}
    assert s.statistics(genome)["experts"] == 1
    other = genome.copy()
    other[2] = 1.0 - genome[2]  # a coefficient of the expert that is left out
    assert s.genes[2].name == "weight.embeddings.math"
    assert s.decode(other).digest == s.decode(genome).digest
    genome[1] = 0.0
    assert s.decode(genome).digest == s.parents()["base"].digest


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ({"weight": [0, 1], "weight.layer_9.*": 0.5}, "weight.layer_9.*: fits no gene"),
        ({"weight": [0, 1], "wieght.layer_0.*": 0.5}, "no parameter 'wieght'"),
        ({"weight": [0, 1], "weight.head.math": [0, 99]}, "weight.head.math is 99, outside"),
        ({"weight": 1.0, "density": [0, 1], "weight.head.*": [0, 1]}, "fits no gene"),
    ],
)
def test_bounds_of_single_genes_that_do_not_fit_are_refused(genes, message):
    with pytest.raises(InputError, match=message):
        space(genes=genes)


@pytest.mark.parametrize("more", [{}, {"choose_experts": True}, {"granularity": "module"}])
def test_a_genomes_recipe_is_read_back_as_the_genome(more):
    s = space(genes={"weight": [0, 1.5], "density": [0.2, 1], "lambda": [0, 2]}, **more)
    genome = np.random.default_rng(0).random(s.dimension)
    if more.get("choose_experts"):
        genome[:2] = 0.75
    np.testing.assert_allclose(s.encode(s.decode(genome)), genome)
    assert s.decode(s.encode(s.decode(genome))).digest == s.decode(genome).digest


def test_a_recipe_that_is_no_point_of_the_space_is_refused():
    s = space()
    with pytest.raises(InputError, match="merges with linear; this space searches ties"):
        s.encode(s.baselines()["average"])
    with pytest.raises(InputError, match="a path of its own"):
        s.encode(s.parents()["math"])


def test_every_tensor_of_a_layer_may_have_genes_of_its_own():
    s = space(granularity="tensor", genes={"weight": [0, 1], "weight.*.attn.w.math": [0.5, 1]})
    names = [gene.name for gene in s.genes]
    assert names[0] == "weight.embeddings.math"
    assert names[2] == "weight.layer_0.attn.w.math"
    assert len(names) == 2 * (3 * 3 + 3)
    assert s.genes[2].low == 0.5
    recipe = s.decode(np.linspace(0, 1, s.dimension))
    assert (0, "mlp.w") in {(m.slot, m.group) for m in recipe.merges}
    np.testing.assert_allclose(s.encode(recipe), np.linspace(0, 1, s.dimension))


def test_a_recipe_of_whole_layers_is_a_point_of_finer_spaces():
    coarse = space(granularity="layer")
    recipe = coarse.decode(np.linspace(0.1, 0.9, coarse.dimension))
    by_layer = coarse.params(coarse.encode(recipe))
    for granularity, name in (("module", "attention"), ("tensor", "mlp.w")):
        fine = space(granularity=granularity)
        params = fine.params(fine.encode(recipe))
        for layer in range(3):
            expected = by_layer[f"weight.layer_{layer}.lang"]
            assert params[f"weight.layer_{layer}.{name}.lang"] == pytest.approx(expected)


def test_a_recipe_of_finer_merges_comes_to_their_mean():
    fine, coarse = space(granularity="module"), space(granularity="layer")
    values = {"attention": 0.3, "mlp": 0.6, "norms": 1.2}
    params = {f"weight.layer_1.{module}.math": value for module, value in values.items()}
    found = coarse.params(coarse.encode(fine.decode(fine.genome_of(params))))
    assert found["weight.layer_1.math"] == pytest.approx(0.7)
    assert found["weight.layer_1.lang"] == pytest.approx(0.5)
