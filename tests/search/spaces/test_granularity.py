"""A budget of coefficients is dealt to tensors by importance."""

from __future__ import annotations

import pytest

from evomerge.search.spaces.granularity import pieces_by_importance, without_piece


@pytest.mark.parametrize(
    ("budget", "power", "counts"),
    [
        (1, 1, [0, 1, 2, 0]),  # ⌊4 · (.05, .25, .70)⌋
        (2, 1, [0, 2, 5, 0]),
        (1, 0, [1, 1, 1, 0]),  # 4/3 each of those that changed
        (1, 2, [0, 0, 3, 0]),
    ],
)
def test_pieces_are_the_whole_part_of_a_tensors_share(budget, power, counts):
    importance = {"a": 0.05, "b": 0.25, "c": 0.70, "same": 0.0}
    found = pieces_by_importance(importance, budget, power)
    assert found == dict(zip(importance, counts, strict=True))


def test_a_scale_or_the_last_bits_of_importance_decide_nothing():
    equal = dict.fromkeys("abcdefghijk", 0.1)
    assert set(pieces_by_importance(equal, 1, 1).values()) == {1}
    assert set(pieces_by_importance(equal, 3, 0.7).values()) == {3}
    some = {"a": 3.0, "b": 1.0, "c": 2.0}
    moved = {"a": 3.0e7 * (1 - 1e-15), "b": 1.0e7 * (1 + 1e-15), "c": 2.0e7}
    assert pieces_by_importance(some, 2, 1) == pieces_by_importance(moved, 2, 1)
    assert pieces_by_importance(some, 2, 1) == {"a": 3, "b": 1, "c": 2}
    assert pieces_by_importance(dict.fromkeys("ab", 0.0), 5, 1) == {"a": 0, "b": 0}


def test_a_genes_name_without_its_piece():
    assert without_piece("weight.layer_0.w.piece_03.math") == "weight.layer_0.w.math"
    assert without_piece("lambda.embeddings.piece_1") == "lambda.embeddings"
    assert without_piece("weight.layer_0.math") == "weight.layer_0.math"
