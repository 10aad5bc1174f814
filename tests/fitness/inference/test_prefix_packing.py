"""Packs: every row is read along its own path, and what rows share is there once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.fitness.inference.prefix_packing import by_length, pack_rows

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12)


def rows_of(lists):
    return {i: np.array(tokens, dtype=np.int32) for i, tokens in enumerate(lists)}


def seen_by(pack, place):
    """The places of a pack that a token sees, by the rule that the masks follow."""
    return [k for k in range(len(pack)) if k <= place < pack.ends[k]]


@given(lists=ROWS, limit=st.integers(0, 40), worth=st.integers(0, 200))
def test_every_row_is_read_as_if_it_were_alone(lists, limit, worth):
    rows = rows_of(lists)
    packs = pack_rows(rows, limit, worth)
    assert sorted(row for pack in packs for row in pack.paths) == sorted(rows)
    for pack in packs:
        assert len(pack.paths) == 1 or len(pack) <= limit
        for row, path in pack.paths.items():
            assert pack.tokens[path].tolist() == rows[row].tolist()
            assert pack.depths[path].tolist() == list(range(len(path)))
            for count, place in enumerate(path, 1):
                assert seen_by(pack, place) == path[:count].tolist()


@given(lists=ROWS)
def test_without_bounds_a_pack_is_the_prefix_tree_of_its_rows(lists):
    packs = pack_rows(rows_of(lists), 10_000, 10_000)
    beginnings = {tuple(tokens[: i + 1]) for tokens in lists for i in range(len(tokens))}
    assert sum(map(len, packs)) == len(beginnings)
    assert len(packs) == len({tokens[0] for tokens in lists})


def test_rows_alone_have_no_branches_and_shared_ones_do():
    rows = rows_of([[1, 2, 3], [1, 2, 4], [1, 2]])
    assert [pack.branches for pack in pack_rows(rows, 0, 99)] == [False] * 3
    (pack,) = pack_rows(rows, 99, 99)
    assert pack.branches
    assert pack.tokens.tolist() == [1, 2, 3, 4]
    assert pack.ends.tolist() == [4, 4, 3, 4]
    (chain,) = pack_rows(rows_of([[1, 2, 3], [1, 2]]), 99, 99)
    assert not chain.branches  # a row that is another's beginning needs no mask


def test_a_pack_grows_while_what_is_shared_is_worth_the_attention_wasted():
    rows = rows_of([[7] * 5 + [i] * 10 for i in range(30)])

    def longest(worth):
        return max(map(len, pack_rows(rows, 10_000, worth)))

    # Two rows are 25 tokens with 25² entries; apart they have 2 · 15², and 5 tokens more.
    wasted = (25**2 - 2 * 15**2) / 5
    assert longest(wasted - 1) == 15
    assert longest(wasted) == 25
    assert 25 < longest(3 * wasted) < longest(6 * wasted) < 5 + 30 * 10


@given(lists=ROWS, budget=st.integers(1, 60), limit=st.sampled_from([0, 40]))
def test_batches_hold_every_pack_once_within_the_budget(lists, budget, limit):
    packs = pack_rows(rows_of(lists), limit, 100)
    batches = list(by_length(packs, budget))
    assert sorted(map(id, packs)) == sorted(id(pack) for batch in batches for pack in batch)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= budget
        assert len({pack.branches for pack in batch}) == 1
        assert [len(pack) for pack in batch] == sorted(map(len, batch), reverse=True)


def test_the_longest_row_may_exceed_the_budget_alone():
    (batch,) = by_length(pack_rows(rows_of([[1] * 9]), 4, 100), 4)
    assert [len(pack) for pack in batch] == [9]


@pytest.mark.parametrize("count", [1, 50])
def test_rows_that_are_equal_up_to_their_ends_cost_one_token_each(count):
    rows = rows_of([[5, 6, 7, 8, i] for i in range(count)])
    assert sum(map(len, pack_rows(rows, 10_000, 10_000))) == 4 + count
