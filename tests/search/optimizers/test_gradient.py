"""Gradient: what is known as it is, descents from several starts, and again from the best."""

from __future__ import annotations

import numpy as np
import pytest
from domains import box, build

from evomerge.common.errors import InputError
from evomerge.config import OptimizerConfig
from evomerge.judging.scores import Scores
from evomerge.search.optimizers import Known, Proposal, build_optimizer

RIGHT = {"a": 0.9, "b": 0.3}


def scored(genome):
    """Two tasks, each best at a place of its own."""
    items = {task: -np.full(4, np.mean((genome - at) ** 2)) for task, at in RIGHT.items()}
    metrics = {task: float(values.mean()) for task, values in items.items()}
    return Scores(sum(metrics.values()), 0.0, 8, items=items, metrics=metrics)


def descended(proposal, rate=0.3):
    """The end of an exact descent on the tasks' mean loss, the raised task counting more."""
    asked, genome = proposal.descent, proposal.genome.copy()
    if asked is None:
        return proposal
    shares = dict.fromkeys(RIGHT, 0.5)
    if asked.task:
        shares = dict.fromkeys(RIGHT, 1 - asked.share) | {asked.task: asked.share}
    for _ in range(asked.steps):
        gradient = sum(2 * share * (genome - RIGHT[task]) for task, share in shares.items())
        genome = np.clip(genome - rate * gradient, 0, 1)
    return Proposal(proposal.ask, proposal.tells, genome, proposal.parents, asked)


def begun(**options):
    domain = box(4)
    domain.seeds = {"base": np.zeros(4), "math": np.ones(4)}
    optimizer = build("gradient", domain, **options)
    known = [*domain.seeds.values(), np.full(4, 0.5)]
    optimizer.begin([Known(genome, scored(genome)) for genome in known])
    return optimizer


def test_the_starts_are_uniform_the_best_parent_and_the_best_baseline():
    asks = [begun().ask(index) for index in range(4)]
    assert asks[0].descent is None
    assert [ask.descent.origin for ask in asks[1:]] == [
        "uniform",
        "the best parent",
        "the best baseline",
    ]
    np.testing.assert_array_equal(asks[0].genome, np.full(4, 0.5))  # the best that is known
    np.testing.assert_array_equal(asks[2].genome, np.ones(4))


def test_each_task_is_raised_in_turn_and_rounds_grow_slower_from_the_best_so_far():
    optimizer, record = begun(rate=0.08), []
    for index in range(13):
        record.append(descended(optimizer.ask(index)))
        optimizer.tell(record[-1], scored(record[-1].genome))
    assert [one.descent.task for one in record[4:]] == ["a", "b", None] * 3
    assert [one.descent.rate for one in record[4:9]] == [0.08, 0.08, 0.04, 0.04, 0.04]
    assert record[-1].descent.rate == 0.01
    again = build("gradient", begun().domain, rate=0.08)
    again.begin([Known(g, scored(g)) for g in (np.zeros(4), np.ones(4), np.full(4, 0.5))])
    for one in record:
        asked = again.ask(one.ask)
        assert asked.descent == one.descent
        again.tell(one, scored(one.genome))
    best = max(record, key=lambda one: scored(one.genome).value)
    np.testing.assert_array_equal(again.ask(13).genome, best.genome)
    assert abs(best.genome - 0.6).max() < 1e-3


def test_it_is_not_screened():
    with pytest.raises(InputError, match=r"optimizer\.screen: .*leave screen out"):
        build_optimizer(OptimizerConfig(kind="gradient", screen=3), box(4), 0)


@pytest.mark.parametrize("name", ["m2n2", "ga", "map_elites", "nsga2", "nsga3"])
def test_a_share_of_children_descends_on_the_task_that_their_parent_is_worst_at(name):
    options = {"warmup": 2} if name in ("m2n2", "ga", "map_elites") else {"population": 6}
    domain = box(4)
    plain, mutated = (build(name, domain, gradient=share, **options) for share in (0.0, 0.5))
    if name == "map_elites":
        plain.check_metrics([*RIGHT])
    told = {}
    for index in range(40):
        ask = mutated.ask(index)
        assert ask.genome.tobytes() == plain.ask(index).genome.tobytes()
        assert plain.ask(index).descent is None
        if ask.descent and ask.parents:
            behind = {}
            for task, mean in told[ask.parents[0]].metrics.items():
                seen = [scores.metrics[task] for scores in told.values()]
                behind[task] = (max(seen) - mean) / (max(seen) - min(seen) or 1)
            assert behind[ask.descent.task] == max(behind.values())
        told[index] = scored(ask.genome)
        for optimizer in (plain, mutated):
            optimizer.tell(ask, told[index])
    screened = build(name, domain, gradient=0.5, screen=3, **options)
    for index in range(30):
        screened.tell(screened.ask(index), told[index])
    asked = [screened.ask(index).descent for index in range(30, 60)]
    assert any(asked), "screened proposals descend, too"
    assert not all(asked)
    share = np.mean([mutated.ask(index).descent is not None for index in range(20, 220)])
    assert 0.35 < share < 0.65
    assert plain.descends(100) is None
    assert mutated.descends(100)[1] == 50
