"""Genes for pieces of tensors: by importance several, one or none."""

from __future__ import annotations

import numpy as np
import pytest
from spaces import DIGESTS, layout, space

from evomerge.common.errors import InputError
from evomerge.config import SpaceConfig
from evomerge.materialize.gradients import differentiable_in
from evomerge.recipe import MergeCoefficient
from evomerge.search.spaces.build import build_space

W = "layer_1.mlp.w"
PIECES = {"embeddings": 0, "layer_0.attn.w": 2, W: 12, "final_norm": 0}


def cut(method="task_arithmetic", pieces=PIECES, **more):
    return space(method, "tensor", pieces=pieces, **more)


def test_a_tensor_has_genes_for_each_piece_or_none():
    names = [gene.name for gene in cut().genes]
    assert names[:4] == [
        f"weight.layer_0.attn.w.piece_{piece}.{expert}"
        for piece in (0, 1)
        for expert in ("math", "lang")
    ]
    assert f"weight.{W}.piece_11.lang" in names
    assert "weight.head.math" in names, "not named: whole"
    assert not any("embeddings" in name or "final_norm" in name for name in names)
    assert len(names) == 2 * (2 + 12 + 7 + 1)


def test_pieces_have_their_genes_values_and_the_merge_their_mean():
    s = cut()
    genome = np.random.default_rng(0).random(s.dimension)
    params, recipe = s.params(genome), s.decode(genome)
    merges = {(m.slot, m.group): m for m in recipe.merges}
    merge = merges[1, "mlp.w"]
    values = [params[f"weight.{W}.piece_{i:02d}.math"] for i in range(12)]
    assert [piece.experts["math"]["weight"] for piece in merge.pieces] == values
    assert merge.experts["math"]["weight"] == pytest.approx(np.mean(values))
    assert merge.parameters == {"lambda": 1.0, "normalize": False}
    whole = merges[None, "head"]
    assert (whole.pieces, whole.experts["lang"]) == ((), {"weight": params["weight.head.lang"]})
    fixed = merges[None, "embeddings"]
    assert fixed.experts == {"math": {"weight": 0.5}, "lang": {"weight": 0.5}}, "the uniform merge"
    np.testing.assert_allclose(s.encode(recipe), genome)


def test_shared_parameters_are_cut_too_and_left_out_experts_have_no_pieces():
    s = cut("linear", genes={"weight": [0, 1], "base_weight": [0, 1]}, choose_experts=True)
    params = s.params(s.initial) | {"use.lang": False}
    merge = next(m for m in s.decode(s.genome_of(params)).merges if m.group == "mlp.w" and m.pieces)
    assert {*merge.experts} == {"math"}
    assert all({*piece.experts} == {"math"} for piece in merge.pieces)
    assert all({*piece.parameters} == {"base_weight"} for piece in merge.pieces)


def test_derivatives_of_pieces_go_to_their_genes():
    s = cut(genes={"weight": [0, 2], "lambda": 0.7})
    recipe = s.decode(s.initial)
    known = differentiable_in(recipe)
    of_piece = MergeCoefficient(1, "mlp.w", "math", "weight", 3)
    assert of_piece in known
    assert MergeCoefficient(1, "mlp.w", None, "lambda") in known, "the whole tensor's"
    assert MergeCoefficient(1, "mlp.w", "math", "weight") not in known, "a mean, not a number"
    index = [gene.name for gene in s.genes].index(f"weight.{W}.piece_03.math")
    found = s.pull_back(s.initial, {of_piece: 1.5})
    assert found[index] == 3.0
    assert np.count_nonzero(found) == 1


def test_frank_wolfe_moves_each_piece_by_itself():
    vertices = cut().vertices()
    assert sorted(map(len, vertices.blocks)) == [2] * (2 + 12 + 7 + 1)


def test_depth_scales_drops_and_paths_go_with_pieces():
    weights = {
        "method": "task_arithmetic",
        "granularity": "tensor",
        "genes": {"weight": [0, 1]},
        "lines": {"alpha": 0.5, "beta": [0, 1]},
        "sparsify": {"kind": "magnitude", "density": [0.2, 1]},
    }
    path = {"kind": "given", "layers": [0, 1, 1, 2]}
    for section in ({"weights": weights}, {"weights": weights, "path": path}):
        s = build_space(SpaceConfig(**section), layout(), DIGESTS, 1, pieces=PIECES)
        recipe = s.decode(np.random.default_rng(1).random(s.dimension))
        cut_in = [len(merge.pieces) for merge in recipe.merges if merge.group == "mlp.w"]
        assert cut_in == ([0, 12, 12, 0] if "path" in section else [0, 12, 0])
        ones = dict.fromkeys(differentiable_in(recipe), 1.0)
        assert s.pull_back(np.full(s.dimension, 0.5), ones).any()


def test_a_recipe_of_other_pieces_is_no_point_of_this_space():
    s = cut()
    recipe = s.decode(s.initial)
    with pytest.raises(InputError, match=r"slot 1, mlp\.w of the recipe has 12 pieces, and 3 here"):
        cut(pieces={**PIECES, W: 3}).encode(recipe)
    with pytest.raises(InputError, match=r"has 2 pieces, and 1 here \(space\.weights\.chunks\)"):
        cut(pieces={}).encode(recipe)
    whole = cut(pieces={})
    found = s.params(s.encode(whole.decode(np.full(whole.dimension, 0.25))))
    assert found[f"weight.{W}.piece_07.lang"] == 0.375, "a whole tensor's value is each piece's"


@pytest.mark.parametrize("method", ["ties", "slerp", "tsvm", "fisher", ["task_arithmetic", "ties"]])
def test_a_method_that_looks_at_whole_tensors_is_refused_by_name(method):
    genes = {"t": [0, 1]} if method == "slerp" else {"lambda": [0, 1]}
    name = method if isinstance(method, str) else "ties"
    with pytest.raises(InputError, match=rf"^space\.weights\.chunks: {name} looks at whole tensor"):
        cut(method, genes=genes, chunks={}, pieces={})


def test_a_budget_too_small_for_any_tensor_is_refused():
    none = dict.fromkeys([group.label for group in cut(pieces={}).groups], 0)
    with pytest.raises(InputError, match=r"^space\.weights\.chunks\.budget: .* write a larger"):
        cut(pieces=none, chunks={})
