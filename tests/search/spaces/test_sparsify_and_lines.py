"""Sparsifiers and LiNeS in a campaign: task vectors made sparse, or scaled by depth."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from spaces import DIGESTS, layout

from evomerge.common.errors import InputError
from evomerge.config import SpaceConfig, WeightsConfig
from evomerge.search.spaces.build import build_space

WEIGHTS = {"method": "ties", "genes": {"weight": [0, 1.5]}}
GROUPS = ["embeddings", "layer_0", "layer_1", "layer_2", "final_norm", "head"]


def space(dare, path="none", **weights):
    section = {**WEIGHTS, **weights, "dare": dare}
    return build_space(SpaceConfig(weights=section, path=path), layout(), DIGESTS, seed=1)


def densities(recipe):
    return [None if merge.drop is None else merge.drop.density for merge in recipe.merges]


def with_params(s, **params):
    named = {name.replace("__", "."): value for name, value in params.items()}
    return s.genome_of(named)


def test_one_gene_thins_out_the_whole_model():
    s = space({"density": [0.2, 1], "rescale": "l1"})
    assert [gene.name for gene in s.genes][:2] == ["dare.density", "weight.embeddings.math"]
    recipe = s.decode(with_params(s, dare__density=0.6))
    assert densities(recipe) == pytest.approx([0.6] * 6)
    assert {merge.drop.rescale for merge in recipe.merges} == {"l1"}
    assert recipe.seed == 1
    assert s.statistics(with_params(s, dare__density=0.6))["dare.density"] == pytest.approx(0.6)


def test_a_gene_of_every_group_stands_where_the_groups_begin():
    s = space({"density": [0.2, 1], "per": "group"})
    names = [gene.name for gene in s.genes]
    assert [name for name in names if name.startswith("dare")] == [
        f"dare.density.{group}" for group in GROUPS
    ]
    assert [names[cut] for cut in s.cuts] == [f"dare.density.{group}" for group in GROUPS]
    recipe = s.decode(with_params(s, dare__density__layer_1=0.5))
    assert {m.slot: m.drop.density for m in recipe.merges if m.drop} == {1: 0.5}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"kind": "magnitude"}, {"kind": "magnitude", "density": 0.6}),
        ({"kind": "breadcrumbs", "gamma": 0.2}, {"kind": "breadcrumbs", "gamma": 0.2}),
        ({"kind": "della", "rescale": "none"}, {"kind": "della", "epsilon": 0.15}),
    ],
)
def test_any_method_can_be_sparsified_by_any_kind(options, found):
    section = {"method": "magmax", "genes": {"lambda": [0, 1]}}
    section["sparsify"] = {"density": [0.2, 1], **options}
    s = build_space(SpaceConfig(weights=section), layout(), DIGESTS, seed=1)
    assert s.genes[0].name == "sparsify.density"
    recipe = s.decode(s.genome_of({"sparsify.density": 0.6}))
    for merge in recipe.merges:
        own = merge.sparsify.model_dump()
        assert own["density"] == pytest.approx(0.6)
        assert found.items() - {("density", 0.6)} <= own.items()
        assert merge.drop is None
    assert not any(merge.sparsify for merge in s.decode(s.initial).merges)


def test_dare_by_either_key_is_one_recipe():
    sparsify = {"kind": "dare", "density": [0.2, 1], "rescale": "l1"}
    one = build_space(SpaceConfig(weights={**WEIGHTS, "sparsify": sparsify}), layout(), DIGESTS, 1)
    other = space({"density": [0.2, 1], "rescale": "l1"})
    recipe = one.decode(one.genome_of({"sparsify.density": 0.5}))
    assert recipe.digest == other.decode(other.genome_of({"dare.density": 0.5})).digest


def test_a_group_whose_weights_are_fixed_has_its_gene_all_the_same():
    genes = {"weight": [0, 1.5], "weight.layer_1.*": 0.5, "weight.head.*": 0.5}
    s = space({"density": [0.2, 1], "per": "group"}, genes=genes)
    wanted = dict(zip(GROUPS, (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), strict=True))
    genome = s.genome_of({f"dare.density.{group}": value for group, value in wanted.items()})
    assert sorted(densities(s.decode(genome))) == pytest.approx(list(wanted.values()))
    assert s.decode(s.initial).merges[1].experts["math"]["weight"] == pytest.approx(0.5)


def test_the_weights_genes_mean_what_they_mean_without_it():
    plain = build_space(SpaceConfig(weights=WEIGHTS), layout(), DIGESTS, seed=1)
    s = space({"density": [0.2, 1], "per": "group"})
    genome = np.random.default_rng(0).random(plain.dimension)
    params = plain.params(genome)
    ones = {f"dare.density.{group}": 1.0 for group in GROUPS}
    assert s.decode(s.genome_of({**params, **ones})).digest == plain.decode(genome).digest


@pytest.mark.parametrize("per", ["model", "group"])
def test_the_search_begins_where_nothing_is_dropped(per):
    plain = build_space(SpaceConfig(weights=WEIGHTS), layout(), DIGESTS, seed=1)
    s = space({"per": per})
    assert s.decode(s.initial).digest == plain.decode(plain.initial).digest
    assert s.baselines().keys() == plain.baselines().keys()
    assert s.grid(2).keys() == plain.grid(2).keys()


@pytest.mark.parametrize("per", ["model", "group"])
def test_a_density_with_a_value_is_no_gene(per):
    s = space({"density": 0.4, "per": per})
    assert s.genes[0].name == "weight.embeddings.math"
    assert densities(s.decode(s.initial)) == [0.4] * 6


def test_with_lines_task_vectors_are_thinned_out_and_scaled():
    s = space({"density": [0.2, 1], "per": "group"}, lines={"alpha": 0.5, "beta": [0, 1]})
    assert [gene.name for gene in s.genes][:2] == ["lines.beta", "dare.density.embeddings"]
    recipe = s.decode(s.genome_of({"lines.beta": 1.0, "dare.density.layer_2": 0.5}))
    [merge] = [merge for merge in recipe.merges if merge.slot == 2]
    assert (merge.parameters["lambda"], merge.drop.density) == (1.5, 0.5)
    assert {s.genes[cut].name for cut in s.cuts[1:]} == {f"dare.density.{g}" for g in GROUPS}


def test_crossovers_leave_each_side_to_one_parent():
    s = space({"per": "group"})
    a, b = np.zeros(s.dimension), np.ones(s.dimension)
    for cut in s.cuts[1:]:
        child = s.recombine(a, b, cut, 1.0)
        assert (set(child[:cut]), set(child[cut:])) == ({0.0}, {1.0})


def test_a_path_runs_through_thinned_layers():
    s = space({"density": 0.4}, path={"kind": "given", "layers": [0, 1, 2, 2]})
    recipe = s.decode(s.initial)
    assert [m.drop.density for m in recipe.merges if m.slot is not None] == [0.4] * 4
    assert recipe.seed == 1


def test_studies_without_it_keep_their_identity():
    assert "dare" not in WeightsConfig(**WEIGHTS).model_dump(mode="json")
    given = WeightsConfig(**WEIGHTS, dare={"density": 0.4}).model_dump(mode="json")
    assert given["dare"] == {"density": 0.4, "rescale": "density", "per": "model"}


def test_a_space_without_it_does_not_take_such_a_recipe_for_its_own():
    plain = build_space(SpaceConfig(weights=WEIGHTS), layout(), DIGESTS, seed=1)
    s = space({"density": 0.4})
    with pytest.raises(InputError, match="drops entries at random"):
        plain.encode(s.decode(s.initial))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("linear", r"space\.weights\.dare: linear has no task vectors"),
        ("dare_ties", r"space\.weights\.dare: dare_ties drops entries at random itself"),
        (["ties", "della"], r"space\.weights\.dare: della drops entries at random itself"),
    ],
)
def test_what_cannot_be_thinned_out_is_refused_before_the_search(method, message):
    with pytest.raises(InputError, match=message):
        space({}, method=method)


@pytest.mark.parametrize("density", [0, 1.5, [0, 1], [0.5, 1.2], [0.7, 0.7], [0.8, 0.2]])
def test_densities_are_probabilities(density):
    with pytest.raises(ValidationError, match="density"):
        WeightsConfig(**WEIGHTS, dare={"density": density})


def lines_space(lines, path="none", **weights):
    section = {**WEIGHTS, **weights, "lines": lines}
    return build_space(SpaceConfig(weights=section, path=path), layout(), DIGESTS, seed=1)


def lambdas(recipe):
    return {merge.slot: merge.parameters["lambda"] for merge in recipe.merges}


def test_two_genes_scale_every_merge_by_its_depth():
    s = lines_space({"alpha": [0, 1], "beta": [0, 2]})
    assert [gene.name for gene in s.genes][:2] == ["lines.alpha", "lines.beta"]
    genome = s.initial.copy()
    genome[:2] = 0.5
    assert lambdas(s.decode(genome)) == {None: 0.5, 0: 0.5, 1: 1.0, 2: 1.5}
    assert s.statistics(genome)["lines.beta"] == 1.0


def test_the_search_begins_at_the_unscaled_merge():
    plain = build_space(SpaceConfig(weights=WEIGHTS), layout(), DIGESTS, seed=1)
    s = lines_space({})
    assert s.decode(s.initial).digest == plain.decode(plain.initial).digest
    assert s.baselines().keys() == plain.baselines().keys()


def test_a_scale_with_a_value_is_no_gene():
    s = lines_space({"alpha": 0.5, "beta": [0, 1]})
    assert [gene.name for gene in s.genes][:2] == ["lines.beta", "weight.embeddings.math"]
    assert lambdas(s.decode(s.initial))[0] == 0.5


def test_crossovers_leave_each_side_of_scaled_merges_to_one_parent():
    s = lines_space({})
    a, b = np.zeros(s.dimension), np.ones(s.dimension)
    assert s.cuts[0] == 0
    for cut in s.cuts[1:]:
        child = s.recombine(a, b, cut, 1.0)
        assert set(child[:cut]) | set(child[cut:]) == {0.0, 1.0}


def test_a_path_runs_through_scaled_layers():
    s = lines_space({"alpha": 0.5, "beta": 1.0}, path={"kind": "given", "layers": [0, 1, 2, 2]})
    assert lambdas(s.decode(s.initial)) == {None: 0.5, 0: 0.5, 1: 1.0, 2: 1.5, 3: 1.5}


@pytest.mark.parametrize(
    ("lines", "weights", "message"),
    [
        ({}, {"method": "linear"}, r"space\.weights\.lines: linear has no 'lambda'"),
        ({}, {"genes": {"weight": [0, 1], "lambda": [0, 1]}}, r"must leave fixed"),
        ({"alpha": [0, 90]}, {}, r"space\.weights\.lines: with alpha 90, lambda is"),
    ],
)
def test_what_cannot_be_scaled_is_refused_before_the_search(lines, weights, message):
    with pytest.raises(InputError, match=message):
        lines_space(lines, **weights)


def aim_space(aim, path="none", **weights):
    section = {**WEIGHTS, **weights, "aim": aim}
    files = {"base": "b", "math": "m"}
    given = SpaceConfig(weights=section, path=path)
    return build_space(given, layout(), DIGESTS, seed=1, calibration=files)


def test_one_gene_holds_every_merge_back_and_the_search_begins_without():
    s = aim_space({"omega": [0.2, 1], "quantile": 0.9})
    assert s.genes[0].name == "aim.omega"
    recipe = s.decode(with_params(s, aim__omega=0.6))
    assert [merge.aim.omega for merge in recipe.merges] == pytest.approx([0.6] * 6)
    assert {merge.aim.quantile for merge in recipe.merges} == {0.9}
    assert recipe.calibration == {"base": "b"}
    assert s.statistics(with_params(s, aim__omega=0.6))["aim.omega"] == pytest.approx(0.6)
    plain = build_space(SpaceConfig(weights=WEIGHTS), layout(), DIGESTS, seed=1)
    assert s.decode(s.initial).digest == plain.decode(plain.initial).digest


def test_a_share_with_a_value_is_no_gene_and_stands_over_what_else_changes_recipes():
    s = aim_space({"omega": 0.4}, sparsify={"kind": "fisher", "density": 0.5}, lines={"alpha": 1})
    recipe = s.decode(s.initial)
    assert s.genes[0].name == "lines.beta"
    assert {merge.aim.omega for merge in recipe.merges} == {0.4}
    assert {merge.sparsify.kind for merge in recipe.merges} == {"fisher"}
    assert recipe.calibration == {"base": "b", "math": "m"}


def test_a_space_without_aim_does_not_take_such_a_recipe_for_its_own():
    plain = build_space(SpaceConfig(weights=WEIGHTS), layout(), DIGESTS, seed=1)
    s = aim_space({"omega": 0.4})
    with pytest.raises(InputError, match="less where activations are large"):
        plain.encode(s.decode(s.initial))


@pytest.mark.parametrize("omega", [-0.1, 1.5, [0.2, 1.2], [0.7, 0.7]])
def test_what_is_held_back_is_a_share(omega):
    with pytest.raises(ValidationError, match="omega"):
        WeightsConfig(**WEIGHTS, aim={"omega": omega})
    assert "aim" not in WeightsConfig(**WEIGHTS).model_dump(mode="json")
