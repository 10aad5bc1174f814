"""Frank-Wolfe: descents of the optimizer gradient, but towards one model after the other."""

from __future__ import annotations

import numpy as np
from domains import build

from evomerge.judging.scores import Scores
from evomerge.search import frank_wolfe
from evomerge.search.optimizers import Known, Proposal
from evomerge.search.spaces.genes import Domain, Gene

EXPERTS, HELPFUL = 20, (3, 7, 11)
VERTICES = frank_wolfe.Vertices(
    np.vstack([np.zeros(EXPERTS), np.eye(EXPERTS)]), [np.arange(EXPERTS)]
)
RIGHT = np.isin(np.arange(EXPERTS), HELPFUL) * 0.25


def scored(genome):
    return Scores(-float(((genome - RIGHT) ** 2).sum()), 0.0, 1)


def descended(proposal):
    """The end of an exact descent."""
    asked, genome = proposal.descent, proposal.genome
    for step in range(asked.steps if asked else 0):
        gradient = 2 * (genome - RIGHT)
        genome = frank_wolfe.stepped(genome, gradient, VERTICES, step, asked.rate)
    return Proposal(proposal.ask, proposal.tells, genome, proposal.parents, asked)


def test_of_twenty_experts_it_finds_the_few_that_help():
    domain = Domain([Gene(f"weight.expert_{i}") for i in range(EXPERTS)], np.full(EXPERTS, 0.05))
    domain.seeds = {"base": np.zeros(EXPERTS)}
    optimizer = build("frank_wolfe", domain)
    optimizer.begin([Known(g, scored(g)) for g in (*domain.seeds.values(), domain.initial)])
    record = []
    for index in range(12):
        record.append(descended(optimizer.ask(index)))
        optimizer.tell(record[-1], scored(record[-1].genome))
    assert {one.descent.rule for one in record if one.descent} == {"frank_wolfe"}
    # 1. what began at the base holds the experts that help, and no other
    from_base = next(
        one for one in record if one.descent and one.descent.origin == "the best parent"
    )
    assert set(np.flatnonzero(from_base.genome)) == set(HELPFUL)
    # 2. the best is near the optimum
    best = max(record, key=lambda one: scored(one.genome).value)
    assert scored(best.genome).value > -0.005
