"""Losses stand for metrics: by output type, over the log-likelihoods that lm-eval would compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from evomerge.common.errors import InputError
from evomerge.fitness.document_loss import DocumentLoss
from evomerge.fitness.inference.local_model import Local
from evomerge.fitness.tasks.lm_eval_quirks import quiet
from evomerge.fitness.tasks.surrogate_losses import check_losses
from evomerge.fitness.tasks.task_set import TaskSet

METRICS = {"multiple_choice": "acc", "loglikelihood": "acc", "generate_until": "print"}


def losses(lm, tasks, kind, **settings):
    """Each document, its loss object, and the loss's value for the model."""
    config = tasks.config({"task": "t", "metric": METRICS[kind], **settings})
    local = Local(lm)
    with quiet():
        task_set = TaskSet(config, local)
    ids = task_set.items[0].ids
    found = task_set.losses({"t": ids})["t"]
    values = local.backward("model.layers", None).losses(found)
    return task_set.documents("t", ids), found, values


def stock_loglikelihoods(lm, pairs):
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    return np.array([value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)])


def test_choices_lose_the_cross_entropy_of_the_right_one(lm, tasks, docs):
    tasks.write("t", "multiple_choice")
    documents, found, values = losses(lm, tasks, "multiple_choice")
    for document, loss, value in zip(documents[:5], found, values, strict=False):
        own = stock_loglikelihoods(lm, loss.pairs)
        assert len(own) == 4
        expected = np.log(np.exp(own).sum()) - own[document["gold"]]
        assert value == pytest.approx(expected, rel=1e-4)


def test_a_target_loses_minus_its_loglikelihood(lm, tasks):
    tasks.write("t", "loglikelihood")
    documents, found, values = losses(lm, tasks, "loglikelihood")
    assert [loss.pairs[0][1] for loss in found] == [f" {one['word']}" for one in documents]
    expected = [-stock_loglikelihoods(lm, loss.pairs)[0] for loss in found]
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_a_generated_answer_loses_its_targets_cross_entropy_by_token(lm, tasks):
    tasks.write("t", "generate_until")
    documents, found, values = losses(lm, tasks, "generate_until")
    assert [loss.pairs[0][1].strip() for loss in found] == [one["word"] for one in documents]
    expected = [-stock_loglikelihoods(lm, loss.pairs)[0] for loss in found]  # of one token each
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_losses_divide_by_tokens_and_add_up_right_choices():
    numbers = [torch.tensor(-2.0), torch.tensor(-1.0), torch.tensor(-3.0)]
    pairs = (("a", "b"), ("a", "c"), ("a", "d"))
    several = DocumentLoss(pairs, right=(0, 2)).of(numbers, [1, 1, 1])
    shares = np.exp([-2.0, -1.0, -3.0])
    assert several.item() == pytest.approx(-np.log((shares[0] + shares[2]) / shares.sum()))
    assert DocumentLoss(pairs[:1], per_token=True).of(numbers[:1], [4]).item() == 0.5


def test_tasks_without_a_loss_are_refused_by_name():
    check_losses({"a": "multiple_choice", "b": "generate_until"}, "initial[0]")
    with pytest.raises(InputError, match=r"initial\[0\]: own \(callable\) has no loss"):
        check_losses({"a": "multiple_choice", "own": "callable"}, "initial[0]")
