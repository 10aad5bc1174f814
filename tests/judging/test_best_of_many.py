"""Choosing on a split of its own: whether it chooses better, and what its score is worth."""

from __future__ import annotations

import numpy as np
import pytest
from cmaes import CMA
from scipy import stats

from evomerge.judging.best_of_many import expected_on_new_items
from evomerge.judging.intervals import interval
from evomerge.judging.objectives import find_objective
from evomerge.judging.scores import Judge, Scores
from evomerge.judging.selection import Judged, by_preference

MEAN = find_objective("mean", "test")
GENES = 8
SIZES = {"search": 60, "select": 60, "hidden": 4000}


class World:
    """Items, and what a candidate of eight genes answers to them.

    How able it is falls with the distance to an optimum; luck with an item is the same for near
    candidates, so that a search climbs the luck of its items too.
    """

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.rng, self.optimum = rng, 0.3 + 0.4 * rng.random(GENES)
        self.splits = {
            split: (rng.normal(size=n), rng.normal(0, 3, (n, GENES)), 2 * np.pi * rng.random(n))
            for split, n in SIZES.items()
        }

    def score(self, genome, split):
        """The share of a split's items it gets right."""
        difficulty, waves, phases = self.splits[split]
        able = 1.2 - 10 * ((genome - self.optimum) ** 2).mean()
        luck = np.arccos(np.sin(waves @ genome + phases)) / np.pi  # uniform on [0, 1]
        return float((luck < 1 / (1 + np.exp(difficulty - able))).mean())

    def judged(self, genomes, split):
        return [
            Judged(x, str(x.tobytes()), Scores(self.score(x, split), 0.0, SIZES[split]))
            for x in genomes
        ]


def search(world, seed, trials=100):
    """What CMA-ES tried, judged on the search split."""
    bounds = np.tile([0.0, 1.0], (GENES, 1))
    cma = CMA(np.full(GENES, 0.5), 0.25, bounds=bounds, seed=seed, population_size=10)
    found = []
    while len(found) < trials:
        told = world.judged([cma.ask() for _ in range(10)], "search")
        cma.tell([(one.trial, -one.value) for one in told])
        found += told
    return found


def test_the_winner_is_the_better_one_more_often_with_select_than_without():
    """The best by search alone against the best of its ten on select, on a large hidden set.

    Over 1000 searches: better in 54 %, worse in 32 %, the same one in the rest; .684 becomes .692.
    What is reported of it is .06 too high instead of .13.
    """
    rows = []
    for seed in range(300):
        world = World(seed)
        top = by_preference(search(world, seed), MEAN)[:10]
        chosen = by_preference(world.judged([one.trial for one in top], "select"), MEAN)
        winners = (top[0], chosen[0])
        rows.append([(one.value, world.score(one.trial, "hidden")) for one in winners])
    (said_without, without), (said_with, having) = np.array(rows).transpose(1, 2, 0)
    better, worse = int((having > without).sum()), int((having < without).sum())
    assert better > 1.3 * worse
    assert stats.binomtest(better, better + worse, alternative="greater").pvalue < 0.01
    assert 0.004 < (having - without).mean() < 0.012
    assert (said_with - having).mean() < 0.6 * (said_without - without).mean()


def candidates(seed, count=10, items=100, spread=0.0, shared=0.5):
    """(true chance, items) of candidates that differ by `spread` and share half of their luck."""
    rng = np.random.default_rng(seed)
    truth = np.clip(0.6 + spread * rng.normal(size=count), 0, 1)
    luck = np.where(rng.random((count, items)) < shared, rng.random(items), 2.0)
    luck = np.where(luck > 1, rng.random((count, items)), luck)
    return truth, [{"t": (u < p) * 1.0} for u, p in zip(luck, truth, strict=True)]


def judge(kind="mean", tasks=("t",)):
    ones = np.ones(len(tasks))
    return Judge(find_objective(kind, "test"), tasks, ones, ones)


@pytest.mark.parametrize(("spread", "naive"), [(0.0, 0.05), (0.03, 0.03)])
def test_the_best_of_ten_is_said_to_be_what_it_is_on_new_items(spread, naive):
    """Its own score is points too high; the estimate is about right, and rather too low."""
    said, expected = [], []
    for seed in range(120):
        truth, found = candidates(seed, spread=spread)
        values = [items["t"].mean() for items in found]
        winner = int(np.argmax(values))
        said.append(values[winner] - truth[winner])
        expected.append(expected_on_new_items(judge(), found) - truth[winner])
    assert np.mean(said) > naive
    assert -0.015 < np.mean(expected) < 0.005
    assert np.square(expected).mean() < np.square(said).mean()


@pytest.mark.parametrize(("count", "spread"), [(10, 0.0), (30, 0.03)])
def test_lowered_by_as_much_the_winners_interval_holds_the_truth_about_as_often_as_it_says(
    count, spread
):
    """As it is, the interval of the best of ten equals holds it in 82 %, that of thirty in 62."""
    hits, plain, rounds = 0, 0, 80
    for seed in range(rounds):
        truth, found = candidates(seed, count=count, items=180, spread=spread)
        winner = int(np.argmax([items["t"].mean() for items in found]))
        around = interval(judge(), found[winner])
        excess = max(0.0, around.value - expected_on_new_items(judge(), found))
        hits += around.low - excess <= truth[winner] <= around.high - excess
        plain += around.low <= truth[winner] <= around.high
    assert hits / rounds >= 0.88
    assert plain < hits


def test_a_winner_without_a_rival_keeps_its_score():
    _, found = candidates(0)
    alone = expected_on_new_items(judge(), found[:1])
    assert alone == pytest.approx(found[0]["t"].mean(), abs=0.005)
    hopeless = [{"t": np.zeros(100)} for _ in range(9)]
    assert expected_on_new_items(judge(), [found[0], *hopeless]) == pytest.approx(alone)


def test_a_single_item_cannot_be_chosen_by_and_scored_on():
    assert expected_on_new_items(judge(), [{"t": np.ones(1)}, {"t": np.zeros(1)}]) is None
    assert expected_on_new_items(judge(), [{"t": np.ones(2)}, {"t": np.zeros(2)}]) == 1.0


def test_the_choice_is_repeated_by_the_campaigns_objective():
    """Of two that are good at one task each, the weakest link knows the third is better."""
    tasks = ("a", "b")
    good, bad, fair = ((np.arange(200) % 10 < share) * 1.0 for share in (9, 2, 6))
    found = [{"a": good, "b": bad}, {"a": bad, "b": good}, {"a": fair, "b": fair}]
    assert expected_on_new_items(judge("weakest_link", tasks), found) == pytest.approx(
        0.57, abs=0.02
    )
    assert expected_on_new_items(judge("mean", tasks), found) == pytest.approx(0.6, abs=0.01)


def test_large_splits_are_drawn_in_blocks_with_the_same_answer(monkeypatch):
    _, found = candidates(1)
    whole = expected_on_new_items(judge(), found)
    monkeypatch.setattr("evomerge.judging.best_of_many._BLOCK", 10_000)
    assert expected_on_new_items(judge(), found) == pytest.approx(whole, abs=0.003)
