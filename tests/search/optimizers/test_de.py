"""Differential evolution, as Evolver and as the textbook has it."""

from __future__ import annotations

import numpy as np
import pytest
from domains import box, build, mixed, run

from evomerge.judging.scores import Scores


def tell(optimizer, index, value, estimated=False):
    proposal = optimizer.ask(index)
    scores = None if value is None else Scores(value, 0.0, 1, estimated=estimated)
    optimizer.tell(proposal, scores)
    return proposal


@pytest.mark.parametrize("variant", ["evolver", "textbook"])
def test_a_slot_keeps_the_better_of_member_and_trial(variant):
    optimizer = build("de", variant=variant, population=4)
    for index in range(4):
        tell(optimizer, index, 0.0)
    before = optimizer._members[0][0]
    assert tell(optimizer, 4, -1.0).parents[0] == 0
    assert optimizer._members[0][0] is before
    better = tell(optimizer, 8, 1.0)
    assert optimizer._members[0][0] is better.genome
    tell(optimizer, 12, None)
    assert optimizer._members[0][2] == 8


def test_evolver_stays_between_two_members_and_textbook_does_not():
    def outside(variant):
        optimizer = build("de", box(4), variant=variant, population=5)
        first = np.stack([tell(optimizer, i, 0.0).genome for i in range(5)])
        record = run(optimizer, [(None, None)] * 5, 60)[5:]
        later = np.stack([p.genome for p, _ in record])
        return ((later < first.min(axis=0)) | (later > first.max(axis=0))).any()

    assert not outside("evolver")
    assert outside("textbook")


@pytest.mark.parametrize("variant", ["evolver", "textbook"])
def test_mutants_take_whole_levels_from_members(variant):
    domain = mixed()
    optimizer = build("de", domain, variant=variant, population=4)
    entries = {tell(optimizer, index, 0.0).genome[1] for index in range(4)}
    assert {tell(optimizer, index, 0.0).genome[1] for index in range(4, 40)} <= entries


def test_an_estimate_never_takes_a_measured_members_slot():
    optimizer = build("de", population=4)
    guessed = tell(optimizer, 0, 0.9, estimated=True)
    assert optimizer._members[0][2] == guessed.ask
    better = tell(optimizer, 4, 0.95, estimated=True)
    assert optimizer._members[0][2] == better.ask
    measured = tell(optimizer, 8, 0.5)
    assert optimizer._members[0][2] == measured.ask
    tell(optimizer, 12, 0.99, estimated=True)
    assert optimizer._members[0][2] == measured.ask
