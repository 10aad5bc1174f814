"""Spaces of paths: what their genes mean, where they begin, and how weights compose with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.common.errors import InputError
from evomerge.config import SpaceConfig, parse_campaign
from evomerge.models.layout import Layout, TensorSpec
from evomerge.recipe import Recipe
from evomerge.search.spaces.build import build_space
from evomerge.search.spaces.path_space import PathSpace
from evomerge.search.spaces.paths import path_kinds

DIGESTS = {"base": "0", "math": "1", "lang": "2"}
WEIGHTS = {"method": "ties", "granularity": "layer", "genes": {"weight": [0, 1.5]}}
SWAP = {"kind": "layer_swap", "outer": "lang", "inner": "math"}
INDICATOR = {"kind": "indicator", "a": "math", "repeats": 2}
SLICES = {"kind": "slices", "count": 3}
ALONE = [SWAP, INDICATOR, {**INDICATOR, "scales": [0.5, 1.5]}, SLICES]
OVER_WEIGHTS = [
    {"kind": "layer_swap", "outer": "merged", "inner": "math", "transition": [0, 0]},
    {"kind": "indicator", "scales": [0.8, 1.2], "repeats": 1},
    {"kind": "slices"},
    {"kind": "given", "layers": [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7]},
]
EVERY = [*((path, None) for path in ALONE), *((path, WEIGHTS) for path in OVER_WEIGHTS)]


def layout(layers=8):
    tensors = [TensorSpec("embed.weight", (8, 4), None, "embeddings", "embed.weight", 0)]
    for i in range(layers):
        for module, suffix in (("attention", "attn.w"), ("mlp", "mlp.w"), ("norms", "norm.w")):
            tensors.append(TensorSpec(f"layers.{i}.{suffix}", (4, 4), i, module, suffix, None))
    tensors.append(TensorSpec("norm.weight", (4,), None, "final_norm", "norm.weight", None))
    tensors.append(TensorSpec("head.weight", (8, 4), None, "head", "head.weight", 0))
    return Layout("Tiny", layers, "layers", tuple(tensors), {}, 8)


def space(path, weights=None, layers=8):
    return build_space(SpaceConfig(path=path, weights=weights), layout(layers), DIGESTS, seed=1)


def genome_of(s, **values):
    """A genome by natural values; `path__bottom=3` is gene path.bottom."""
    genome = s.initial.copy()
    for key, value in values.items():
        index = [gene.name for gene in s.genes].index(key.replace("__", "."))
        genome[index] = s.genes[index].unit(value)
    return genome


def spell(recipe: Recipe) -> str:
    """The path in short: `l0` a copy of lang's layer 0, `l0+` a slot with a merge."""
    merged = {merge.slot for merge in recipe.merges}
    return " ".join(
        f"{slot.source[0]}{slot.layer}{'+' if index in merged else ''}"
        for index, slot in enumerate(recipe.path)
    )


def test_every_kind_is_tested_here():
    assert {path["kind"] for path, _ in EVERY} == set(path_kinds())


@pytest.mark.parametrize(("path", "weights"), EVERY)
def test_genomes_decode_to_recipes_whose_statistics_are_the_paths(path, weights):
    s = space(path, weights)
    rng = np.random.default_rng(0)
    for genome in rng.random((30, s.dimension)):
        recipe = s.decode(genome)
        assert s.statistics(genome)["depth"] == len(recipe.path)
        assert all(slot.layer < 8 for slot in recipe.path)
        assert s.decode(genome.copy()).digest == recipe.digest


@pytest.mark.parametrize(("path", "weights"), EVERY)
def test_every_gene_changes_some_recipe(path, weights):
    s = space(path, weights)
    rng = np.random.default_rng(1)
    silent = set(range(s.dimension))
    for genome in rng.random((60, s.dimension)):
        digest = s.decode(genome).digest
        for index in list(silent):
            other = genome.copy()
            other[index] = (genome[index] + 0.5) % 1
            if s.decode(other).digest != digest:
                silent.discard(index)
    assert {s.genes[i].name for i in silent} == set()


@pytest.mark.parametrize(("path", "weights"), EVERY)
def test_inactive_genes_change_nothing(path, weights):
    s = space(path, weights)
    rng = np.random.default_rng(2)
    for genome in rng.random((10, s.dimension)):
        active = s.params(genome)
        other = genome.copy()
        for index, gene in enumerate(s.genes):
            if gene.name not in active:
                other[index] = 1 - genome[index]
        assert s.decode(other).digest == s.decode(genome).digest


@pytest.mark.parametrize(("path", "weights"), EVERY)
def test_crossovers_split_between_slots_and_take_each_side_from_one_parent(path, weights):
    s = space(path, weights)
    rng = np.random.default_rng(3)
    a, b = rng.random((2, s.dimension))
    for cut in s.cuts:
        child = s.recombine(a, b, cut, 1.0)
        assert np.array_equal(child[:cut], a[:cut])
        assert np.array_equal(child[cut:], b[cut:])
        gene = s.genes[cut]
        assert not gene.when, "no cut between a slot and its scale"


@pytest.mark.parametrize("path", ALONE)
def test_parents_and_baselines_are_those_of_a_search_in_weight_space(path):
    alone, plain = space(path), space("none", WEIGHTS)
    for name, recipe in plain.parents().items():
        assert alone.parents()[name].digest == recipe.digest
    assert set(alone.baselines()) == {"ties default", "average"}
    assert alone.baselines()["average"].digest == plain.baselines()["average"].digest


def test_layer_swap_builds_the_papers_path_for_its_numbers():
    s = space(SWAP, layers=32)
    recipe = s.decode(s.initial)
    first = [f"l{i}" for i in range(5)] + ["l5+"]
    middle = [f"m{i}" for i in range(6, 29)]
    assert spell(recipe).split() == [*first, *middle, "l29+", "l30", "l31"]
    average = next(merge for merge in recipe.merges if merge.slot == 5)
    assert average.method == "linear"
    assert average.experts == {"lang": {"weight": 0.5}, "math": {"weight": 0.5}}
    assert [m.experts for m in recipe.merges if m.slot is None] == [{"lang": {}}] * 3


def test_layer_swap_widths_that_overlap_give_outer_layers_before_transitions():
    s = space({**SWAP, "bottom": [0, 8], "top": [0, 8]})
    overlap = genome_of(
        s, path__bottom=5, path__top=2, path__bottom_transition=2, path__top_transition=2
    )
    assert spell(s.decode(overlap)) == "l0 l1 l2 l3 l4 l5+ l6 l7"


def test_layer_swap_against_the_base_averages_with_it():
    s = space({**SWAP, "outer": "base"})
    recipe = s.decode(genome_of(s, path__bottom=1, path__bottom_transition=1))
    average = next(merge for merge in recipe.merges if merge.slot == 1)
    assert average.experts == {"math": {"weight": 0.5}}
    assert average.parameters == {"base_weight": 0.5, "normalize": True}
    assert not [merge for merge in recipe.merges if merge.slot is None]


def test_bounds_with_one_value_are_fixed_and_no_gene():
    s = space({**SWAP, "transition": [0, 0], "top": [2, 2]})
    assert [gene.name for gene in s.genes] == ["path.bottom"]
    assert spell(s.decode(genome_of(s, path__bottom=1))) == "l0 m1 m2 m3 m4 m5 l6 l7"


def test_indicator_begins_at_model_a_and_keeps_its_ends():
    s = space(INDICATOR, layers=4)
    assert spell(s.decode(s.initial)) == "m0 m1 m2 m3"
    assert list(s.seeds) == ["math"]
    assert s.decode(s.initial).digest == s.parents()["math"].digest
    off = np.zeros(s.dimension)
    assert spell(s.decode(off)) == "m0 m3"
    on = np.ones(s.dimension)
    assert spell(s.decode(on)) == (
        "m0 m1 m2 l0 l1 l2 l3 m0 m1 m2 m3 l0 l1 l2 l3 m3"  # 2 repetitions, A's ends taken out
    )
    assert s.dimension == 2 * 2 * 4 - 2


def test_indicator_scales_only_transitions_that_occur():
    s = space({**INDICATOR, "scales": [0.5, 1.5], "repeats": 1}, layers=4)
    genome = genome_of(
        s,
        **{"path__1__lang__3__on": 1, "path__1__lang__3__scale": 0.75, "path__end__scale": 1.25},
        **{"path__1__math__2__scale": 0.6},
    )
    recipe = s.decode(genome)
    assert spell(recipe) == "m0 m1 m2 l3 m3"
    assert [slot.scale for slot in recipe.path] == [1, 1, 1, 0.75, 1.25]
    assert "path.1.lang.2.scale" not in s.params(genome)
    assert "cannot be exported" in s.notes[0]


def test_indicator_can_be_bounded_in_depth():
    s = space({**INDICATOR, "max_depth": 6})
    rng = np.random.default_rng(0)
    for genome in rng.random((20, s.dimension)):
        path = s.decode(genome).path
        assert len(path) <= 6
        assert (path[-1].source, path[-1].layer) == ("math", 7)


def test_slices_may_overlap_and_repeat_in_their_order():
    s = space(SLICES)
    genome = genome_of(
        s,
        **{"path__0__source": "math", "path__0__length": 3},
        **{"path__1__source": "lang", "path__1__start": 1, "path__1__length": 3},
        **{"path__2__source": "math", "path__2__start": 5},
    )
    assert spell(s.decode(genome)) == "m0 m1 m2 l1 l2 l3 m5 m6 m7"
    empty = genome_of(s, path__1__length=0)
    assert len(s.decode(empty).path) < 8


def test_slices_begin_at_a_parents_own_path():
    s = space(SLICES)
    assert s.decode(s.initial).digest == s.parents()["math"].digest


@given(st.integers(2, 20), st.integers(2, 5), st.randoms(use_true_random=False))
def test_slices_are_never_longer_than_their_bound_and_keep_both_ends(most, count, random):
    s = space({**SLICES, "count": count, "max_depth": most})
    path = s.decode(np.array([random.random() for _ in range(s.dimension)])).path
    assert 2 <= len(path) <= most
    assert (path[0].layer, path[-1].layer) == (0, 7)


def test_over_weights_every_slot_of_the_merge_has_its_layers_merges():
    s = space({"kind": "slices", "sources": ["merged", "lang"]}, WEIGHTS)
    genome = genome_of(
        s,
        **{"path__0__source": "merged", "path__0__length": 8},
        **{"path__1__source": "lang", "path__1__start": 2, "path__1__length": 1},
        **{"path__2__source": "merged", "path__2__start": 6, "weight__layer_6__math": 0.3},
    )
    recipe = s.decode(genome)
    assert spell(recipe) == "b0+ b1+ b2+ b3+ b4+ b5+ b6+ b7+ l2 b6+ b7+"
    weights = {
        merge.slot: merge.experts["math"]["weight"]
        for merge in recipe.merges
        if merge.slot is not None
    }
    assert weights[6] == weights[9] == pytest.approx(0.3)
    assert weights[7] == weights[10] != weights[6]


def test_over_weights_the_search_begins_where_the_weights_alone_would():
    for path in OVER_WEIGHTS[1:-1]:  # a given path is where its campaign begins
        s, plain = space(path, WEIGHTS), space("none", WEIGHTS)
        assert s.decode(s.initial).digest == plain.decode(plain.initial).digest


def test_over_weights_a_parent_is_where_the_weights_have_it():
    several = {**WEIGHTS, "method": ["task_arithmetic", "ties"]}
    for path in OVER_WEIGHTS[1:-1]:
        s, plain = space(path, several), space("none", several)
        for recipe in [*plain.parents().values(), *plain.baselines().values()]:
            point, alone = s.point_of(recipe), plain.point_of(recipe)
            assert (point is None) == (alone is None)
            if point is not None:
                assert s.decode(point).digest == plain.decode(alone).digest
        assert s.point_of(s.parents()["math"]) is not None
    given = space(OVER_WEIGHTS[-1], several)  # its path is none of the models'
    assert given.point_of(given.parents()["math"]) is None


def test_path_none_is_the_space_of_weights():
    assert not isinstance(space("none", WEIGHTS), PathSpace)


@pytest.mark.parametrize(
    ("path", "weights", "message"),
    [
        ({"kind": "layer_swop"}, None, "space.path.kind: .*did you mean 'layer_swap'"),
        ({"kind": "layer_swap", "outer": "lang"}, None, "space.path.inner: required"),
        ({**SWAP, "outer": "long"}, None, "space.path.outer: .*did you mean 'lang'"),
        ({**SWAP, "outer": "math"}, None, "space.path.inner: math is outer too"),
        (
            {**SWAP, "botom": [0, 1]},
            None,
            "space.path.botom: unknown option of layer_swap",
        ),
        ({**SWAP, "bottom": [0, 9]}, None, r"space.path.bottom is \[0, 9\]"),
        ({**SWAP, "bottom": [3, 2]}, None, r"space.path.bottom is \[3, 2\]"),
        ({**SWAP, "bottom": "wide"}, None, "space.path.bottom: "),
        ({**SWAP, "outer": "merged"}, WEIGHTS, "cannot be averaged"),
        ({**SWAP, "bottom": [1, 1], "top": [1, 1], "transition": [1, 1]}, None, "nothing to sea"),
        ({"kind": "indicator"}, None, "space.path.a: name the model"),
        ({**INDICATOR, "repeats": 0}, None, "space.path.repeats is 0"),
        ({**INDICATOR, "scales": [1.5, 0.5]}, None, "space.path.scales: bounds"),
        ({**INDICATOR, "others": ["math"]}, None, "space.path.others: math stands twice"),
        ({**INDICATOR, "max_depth": 1}, None, "space.path.max_depth is 1"),
        ({**SLICES, "count": 1}, None, "space.path.count is 1"),
        ({**SLICES, "sources": ["merged"]}, None, "space.path.sources: no model"),
        ({**SLICES, "length": [0, 9]}, None, "space.path.length is"),
    ],
)
def test_a_path_section_that_does_not_fit_is_refused_by_key(path, weights, message):
    with pytest.raises(InputError, match=message):
        space(path, weights)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "space: nothing to search; give weights, path, or both"),
        ({"path": "none"}, "space: nothing to search"),
        ({"path": {"kind": "none", "a": "math"}, "weights": WEIGHTS}, "kind none has no options"),
    ],
)
def test_a_space_section_without_a_search_is_refused(section, message):
    data = {
        "name": "x",
        "models": {"base": "a", "experts": {"m": "b"}},
        "space": section,
        "fitness": {"tasks": [{"task": "t"}]},
    }
    with pytest.raises(InputError, match=message):
        parse_campaign(data, "file")


def test_an_expert_may_not_bear_the_searched_merges_name():
    config = SpaceConfig(path={"kind": "slices"}, weights=WEIGHTS)
    with pytest.raises(InputError, match="rename the expert"):
        build_space(config, layout(), {"base": "0", "merged": "1"}, 0)
