"""Descents step as Adam does, stop when nothing gets better, and see fresh documents."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from evomerge.config import DescentConfig
from evomerge.search.descent import (
    Batches,
    begin,
    is_behind,
    looked,
    mean_of_tail,
    pulled,
    scales,
    stepped,
    with_tail,
)
from evomerge.study.record import Descend, DescentRecord

ITEMS = {"a": [f"a{i}" for i in range(20)], "b": [f"b{i}" for i in range(7)]}


def test_a_step_is_adams_within_the_bounds():
    centre, start = torch.tensor([0.7, 0.2, 1.4]), np.array([0.5, 0.5, 0.9])
    weights = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    record = begin("uniform", start)
    for _ in range(12):
        optimizer.zero_grad()
        ((weights - centre) ** 2).sum().backward()
        gradient = weights.grad.numpy().copy()
        optimizer.step()
        with torch.no_grad():
            weights.clamp_(0, 1)
        record = stepped(record, gradient, 0.05)
        np.testing.assert_allclose(record.genome, weights.detach().numpy(), rtol=1e-9)
    assert record.genome[2] == 1.0
    assert DescentRecord(**asdict(record)) == record


def test_the_end_is_the_mean_of_the_last_steps_where_it_is_to_be():
    record, asked = begin("uniform", np.array([0.9, 0.1])), Descend("", 5, average=0.5)
    seen = []
    for _ in range(asked.steps):
        record = with_tail(stepped(record, np.array([1.0, -1.0]), 0.1), asked)
        seen.append(record.genome)
    assert asked.averaged == 2
    assert mean_of_tail(record, asked) == pytest.approx(np.mean(seen[3:], axis=0))
    assert Descend("", 5).averaged == 1


def test_an_average_is_for_descents_that_do_not_look():
    with pytest.raises(ValidationError, match="average: looks choose the end"):
        DescentConfig(average=0.5)
    assert DescentConfig(average=0.5, check=0, held_back=0).model_dump()["average"] == 0.5
    assert "average" not in DescentConfig().model_dump()  # as campaigns were recorded before


def test_the_end_is_the_best_look_and_patience_ends_it():
    record = begin("uniform", np.array([0.5]))
    for loss in (3.0, 2.0, 2.5, 2.4):
        record = looked(record, loss, steps=100, patience=2)
        if record.done is None:
            record = stepped(record, np.array([1.0]), 0.1)
    assert record.done == "nothing better was found"
    assert record.best_step == 1
    assert record.best == pytest.approx([0.4])
    whole = looked(begin("uniform", np.array([0.5])), 1.0, steps=0, patience=2)
    assert whole.done == "all steps were made"


def test_documents_are_fresh_and_apart_from_those_held_back():
    batches = Batches(ITEMS, batch=8, held_back=0.2, seed=[1, 0])
    held = {task: set(ids) for task, ids in batches.held.items()}
    assert {task: len(ids) for task, ids in held.items()} == {"a": 4, "b": 1}
    seen = [one for step in range(4) for one in batches.at(step)["a"]]
    assert len(seen) == len(set(seen)) == 16  # each once before any comes again
    assert set(seen) | held["a"] == set(ITEMS["a"])
    assert batches.at(7) == Batches(ITEMS, batch=8, held_back=0.2, seed=[1, 0]).at(7)
    assert batches.at(7) != Batches(ITEMS, batch=8, held_back=0.2, seed=[2, 0]).at(7)


def test_all_documents_are_for_steps_where_none_is_held_back():
    batches = Batches(ITEMS, batch=8, held_back=0, seed=[1, 0])
    assert batches.held == {"a": [], "b": []}
    assert {one for step in range(5) for one in batches.at(step)["a"]} == set(ITEMS["a"])
    with pytest.raises(ValidationError, match="write check: 0"):
        DescentConfig(held_back=0)


def test_a_task_of_one_document_does_for_both():
    batches = Batches({"a": ["x"]}, batch=30, held_back=0.2, seed=[0, 0])
    assert (batches.held, batches.at(3)) == ({"a": ["x"]}, {"a": ["x"]})


def test_genes_with_large_gradients_vary_less_around_the_end():
    record = begin("uniform", np.full(5, 0.5))
    assert scales(record) is None
    for sign in (1, -1, 1, 1):
        gradient = sign * np.array([4.0, 16.0, 64.0, 0.0, 1e9])
        record = stepped(record, gradient, 0.01)
    found = scales(record)
    # the fourth root of the second moment, g², is √g; a gene without a gradient has 1
    assert found[0] / found[1] == pytest.approx(2)
    assert found[3] == 1
    # no gene varies by more than a factor of 3 more or less than the median, 3/16
    assert found[4] / found[1] == pytest.approx(3 / 16 / 3 / (1 / 4))
    assert np.exp(np.log(found).mean()) == pytest.approx(1)


def test_documents_held_back_may_be_the_same_for_many_and_their_order_not():
    first, second = (Batches(ITEMS, 8, 0.2, seed=[1], order=[1, 1, ask]) for ask in (0, 1))
    assert first.held == second.held == Batches(ITEMS, 8, 0.2, seed=[1]).held
    assert first.at(0) != second.at(0)
    for one in (first, second):
        seen = {item for step in range(4) for item in one.at(step)["a"]}
        assert seen | set(one.held["a"]) == set(ITEMS["a"])
        assert not seen & set(one.held["a"])


@pytest.mark.parametrize(("norm", "pulls"), [("l1", [0.5, -0.5]), ("l2", [0.4, -0.2])])
def test_a_pull_leads_back_to_the_start(norm, pulls):
    asked = Descend("uniform", 10, pull=1.0, norm=norm)
    record = replace(begin("uniform", np.array([0.2, 0.8]), asked), genome=[0.6, 0.6])
    found = pulled(record, np.zeros(2), asked)
    np.testing.assert_allclose(found, pulls)
    assert pulled(record, found, Descend("uniform", 10)) is found


def looks(*losses, done=None, **asked):
    """A descent that was looked at after every step, at these losses."""
    checks = [[step, loss] for step, loss in enumerate(losses)]
    asked = Descend("uniform", **{"steps": 2, "check": 1, **asked})
    record = begin("uniform", np.array([0.5]), asked)
    return replace(record, step=len(losses) - 1, checks=checks, done=done)


def test_a_descent_is_behind_when_the_median_of_others_had_seen_less_by_as_many_steps():
    others = [looks(2.0, 1.0, 0.1), looks(2.0, 1.2, 0.1), looks(2.0, 1.4, 0.1)]
    assert is_behind(looks(2.0, 1.3), others)
    assert not is_behind(looks(2.0, 1.2), others)
    assert not is_behind(looks(1.1, 1.3), others), "its best look counts, not its last"
    assert not is_behind(looks(9.0), others), "before the first step nothing is known"
    assert not is_behind(looks(2.0, 1.3), others[:2]), "two are too few"
    short = [looks(2.0), *others[:2]]
    assert not is_behind(looks(2.0, 1.3), short), "one ended before that step"
    raised = [replace(one, asked=replace(one.asked, task="a")) for one in others]
    assert not is_behind(looks(2.0, 1.3), raised), "their loss is another"
    assert not is_behind(looks(2.0, 1.3, steps=3), others), "it may overtake them until half way"
