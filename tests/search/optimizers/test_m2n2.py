"""m2n2, ga and map_elites: what optimizers with an archive do beyond the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from archive_runs import fragments, mixed, search

from evomerge.config import OptimizerConfig
from evomerge.judging.scores import Scores
from evomerge.search.optimizers import build_optimizer


def hills(genome):
    """Four items, each best at another value of its gene."""
    values = np.exp(-8 * (genome[:4] - np.array([0.2, 0.8, 0.4, 0.7])) ** 2)
    return Scores(float(values.mean()), 0.0, 4, items={"hills": values})


ARCHIVED = ("m2n2", "ga", "map_elites")


@pytest.mark.parametrize("name", ARCHIVED)
def test_starts_sources_and_initial_point_open_the_search(name):
    domain = mixed()
    optimizer = build_optimizer(OptimizerConfig(kind=name), domain, 0)
    opened = [optimizer.ask(i) for i in range(4)]
    assert [p.genome[0] for p in opened] == [0.3, 0.1, 0.9, 0.5]
    assert all(p.parents == () for p in opened)


@pytest.mark.parametrize("name", ARCHIVED)
def test_mixed_genes_with_results_out_of_order_replay_exactly(name):
    def drive(optimizer, record, rounds):
        waiting = [optimizer.ask(len(record) + i) for i in range(3)]
        for _ in range(rounds):
            proposal = waiting.pop(len(record) % 3)
            scores = fragments(proposal.genome)
            optimizer.tell(proposal, scores)
            record.append((proposal, scores))
            waiting.append(optimizer.ask(len(record) + 2))
        return record

    whole = drive(build_optimizer(OptimizerConfig(kind=name), mixed(), 3), [], 80)
    resumed = build_optimizer(OptimizerConfig(kind=name), mixed(), 3)
    for proposal, scores in whole:
        again = resumed.ask(proposal.ask) if proposal.tells == resumed.tells else proposal
        assert again.genome.tobytes() == proposal.genome.tobytes()
        assert again.parents == proposal.parents
        resumed.tell(proposal, scores)
    assert all(p < q.ask for q, _ in whole for p in q.parents)
    assert sum(len(q.parents) == 2 for q, _ in whole) > 40


@pytest.mark.parametrize("name", ARCHIVED)
def test_archives_find_more_than_they_began_with(name):
    for seed in range(3):
        optimizer = build_optimizer(OptimizerConfig(kind=name), mixed(), seed)
        values = [scores.value for _, scores in search(optimizer, 200, hills)]
        assert max(values) > max(values[:4]) + 0.1


def test_competition_keeps_more_items_solved_than_a_plain_genetic_algorithm():
    def covered(name):
        runs = []
        for seed in range(5):
            optimizer = build_optimizer(OptimizerConfig(kind=name), mixed(), seed)
            search(optimizer, 200)
            runs.append(optimizer.state()["entropy"])
        return np.mean(runs)

    assert covered("m2n2") > covered("ga")


@pytest.mark.parametrize("flaw", [{"violation": 1.0}, {"estimated": True}])
@pytest.mark.parametrize("name", ARCHIVED)
def test_candidates_that_break_a_constraint_or_are_estimated_never_breed(name, flaw):
    def score(genome):
        good = fragments(genome)
        return replace(good, value=1.0, **flaw) if genome[0] < 0.5 else good

    optimizer = build_optimizer(OptimizerConfig(kind=name, mutation=0.0), mixed(), 1)
    record = search(optimizer, 120, score)
    late = [p for p, _ in record[40:]]
    bred_from = [record[i][1] for p in late for i in p.parents]
    assert {(s.violation, s.estimated) for s in bred_from} == {(0.0, False)}


def test_smaller_is_better_where_the_sign_says_so():
    def score(genome):
        loss = {"loss": np.array([genome[0] + 1.0, genome[1] + 1.0])}
        return Scores(-float(loss["loss"].mean()), 0.0, 2, items=loss, signs={"loss": -1.0})

    optimizer = build_optimizer(OptimizerConfig(kind="m2n2"), mixed(), 0)
    record = search(optimizer, 200, score)
    assert np.mean([p.genome[:2].mean() for p, _ in record[-30:]]) < 0.15


def test_measures_do_not_compete_for_niches():
    """Genomes that differ in a measure alone are one niche: the archive sees the same rows."""
    told = []
    for length in (0.0, 1.0):
        optimizer = build_optimizer(OptimizerConfig(kind="m2n2"), mixed(), 0)
        for index in range(30):
            proposal = optimizer.ask(index)
            scores = fragments(proposal.genome)
            tokens = np.full(5, 100 + length * index)
            beside = {"items": {**scores.items, "tokens": tokens}, "beside": frozenset({"tokens"})}
            optimizer.tell(proposal, replace(scores, **beside))
        told.append(optimizer.ask(30).genome)
    assert np.array_equal(*told)
