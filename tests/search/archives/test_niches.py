from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.search.archives import GridArchive, NicheArchive

NAN = math.nan


def archive(rows, capacity=None, alpha=1.0, tasks=None):
    made = NicheArchive(capacity or len(rows), alpha)
    for row in rows:
        made.offer(np.array(row, float), None if tasks is None else np.array(tasks))
    return made


def released(scores, newcomer, alpha):
    """The authors' update, as their code has it: the archive's scores afterwards."""
    extended = np.concatenate([scores, newcomer[None]]).astype(float)
    crowd = extended.sum(0) ** alpha
    loser = int(np.argmin((extended / np.where(crowd, crowd, 1)).sum(1).round(9)))
    after = scores.copy()
    if loser < len(scores):
        after[loser] = newcomer
    return after


def test_fitness_shares_each_item_among_those_who_solve_it():
    found = archive([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]])
    assert found.fitness() == pytest.approx([1 / 3 + 1, 1 / 3 + 1, 1 / 3])


def test_alpha_zero_is_the_plain_sum():
    found = archive([[1, 1, 0], [1, 0, 1], [1, 0, 0]], alpha=0.0)
    assert found.fitness().tolist() == [2, 2, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 1.0]))
def test_binary_archives_evolve_as_the_released_code_does(seed, alpha):
    rng = np.random.default_rng(seed)
    rows = (rng.random((14, 6)) < 0.5).astype(float)
    rows[:, 0] = 1  # everybody solves something: the released archive begins with zeros
    found = archive(rows[:4], alpha=alpha)
    expected = rows[:4].copy()
    for row in rows[4:]:
        found.offer(row)
        expected = released(expected, row, alpha)
        assert np.array_equal(found.scores, expected)


def test_of_equals_the_incumbent_in_the_lowest_slot_goes():
    found = archive([[1, 0], [1, 0]])
    assert found.offer(np.array([1.0, 0.0])) == 0
    assert found.offer(np.array([0.0, 0.0])) is None


def test_who_solves_what_nobody_else_does_outlives_better_generalists():
    generalists = [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]]
    specialist = [0, 0, 0, 0, 1]
    competing = archive([*generalists, specialist])
    competing.offer(np.array([1.0, 0, 1, 1, 0]))
    assert specialist in competing.scores.tolist()
    plain = archive([*generalists, specialist], alpha=0.0)
    plain.offer(np.array([1.0, 0, 1, 1, 0]))
    assert specialist not in plain.scores.tolist()


def test_continuous_scores_lose_their_minimum_and_are_worth_their_maximum():
    found = archive([[0.5, 0.2], [0.7, 0.2], [0.9, 0.8]])
    s = np.array([[0, 0], [0.2, 0], [0.4, 0.6]])
    expected = (s * s.max(0) / s.sum(0)).sum(1)
    assert found.fitness() == pytest.approx(expected)


def test_members_compete_only_on_items_they_all_have():
    found = archive([[1, 0, 1, 1], [0, 1, NAN, NAN]])
    assert found.fitness() == pytest.approx([1, 1])
    assert found.coverage() == 1


def test_items_seen_later_count_once_everybody_has_them():
    found = archive([[1, 0], [1, 0]])
    found.offer(np.array([0.0, 1.0, 1.0]))  # one of the two leaves
    assert found.fitness() == pytest.approx([1, 1])
    found.offer(np.array([1.0, 0.0, 0.0]))
    found.offer(np.array([1.0, 0.0, 0.0]))
    assert not np.isnan(found.scores).any()
    assert found.fitness() == pytest.approx([2, 1])


def test_every_task_has_as_much_to_give():
    found = archive([[1, 1, 1, 0], [0, 0, 0, 1]], tasks=[0, 0, 0, 1])
    assert found.fitness() == pytest.approx([2, 2])


def test_attraction_draws_those_who_are_strong_where_the_first_is_weak():
    found = archive([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]])
    rng = np.random.default_rng(0)
    pairs = [found.parents(rng) for _ in range(300)]
    assert {b for a, b in pairs if a in (0, 1)} == {2}
    assert {b for a, b in pairs if a == 2} == {0, 1}
    alone = [found.parents(rng, attraction=False) for _ in range(300)]
    assert {b for a, b in alone if a == 0} == {0, 1, 2}


def test_attraction_is_proportional_to_the_gain_over_the_crowd():
    found = archive([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]])
    rng = np.random.default_rng(1)
    seconds = [b for a, b in (found.parents(rng) for _ in range(6_000)) if a == 0]
    assert np.mean(np.array(seconds) == 1) == pytest.approx(1.5 / 2, abs=0.04)


def test_when_the_first_dominates_all_the_second_is_drawn_among_the_others():
    found = archive([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    pairs = [found.parents(np.random.default_rng(i)) for i in range(200)]
    assert {b for a, b in pairs if a == 0} == {1}
    nothing = archive([[0, 0], [0, 0], [0, 0]])
    assert all(a != b for a, b in (nothing.parents(np.random.default_rng(i)) for i in range(50)))


def test_coverage_and_entropy_say_what_is_solved_and_how_differently():
    found = archive([[1, 1, 0, 0], [1, 0, 1, 0]])
    assert found.coverage() == 0.75
    assert found.entropy() == pytest.approx(0.5)
    assert archive([[1, 1], [1, 1]]).entropy() == 0
    assert NicheArchive(3).coverage() == NicheArchive(3).entropy() == 0


def test_nobody_breeds_in_an_empty_archive():
    for empty in (NicheArchive(2), GridArchive((1, 1), ((0, 1), (0, 1)))):
        with pytest.raises(ValueError, match="empty"):
            empty.parents(np.random.default_rng(0))
