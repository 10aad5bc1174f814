"""Losses stand for metrics: by output type, over what lm-eval would ask of the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from evomerge.common.errors import InputError
from evomerge.config import SurrogateLossConfig
from evomerge.fitness.document_loss import Reading, RightAnswerLoss
from evomerge.fitness.inference.local_model import Local
from evomerge.fitness.tasks.lm_eval_quirks import quiet
from evomerge.fitness.tasks.surrogate_losses import check_losses
from evomerge.fitness.tasks.task_set import TaskSet

METRICS = {"multiple_choice": "acc", "loglikelihood": "acc", "generate_until": "print"}


def losses(lm, tasks, kind, loss=None):
    """Each document, its loss object, and the loss's value for the model."""
    entry = {"task": "t", "metric": METRICS[kind]}
    config = tasks.config(entry, surrogate_loss=loss or {"kind": "supervised"})
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
    several = RightAnswerLoss(pairs, right=(0, 2)).of([Reading(one, 1) for one in numbers])
    shares = np.exp([-2.0, -1.0, -3.0])
    assert several.item() == pytest.approx(-np.log((shares[0] + shares[2]) / shares.sum()))
    assert RightAnswerLoss(pairs[:1], per_token=True).of([Reading(numbers[0], 4)]).item() == 0.5


def test_a_bounded_loss_goes_from_the_loss_itself_to_the_probability_of_being_wrong(lm, tasks):
    tasks.write("t", "multiple_choice")
    _, _, plain = losses(lm, tasks, "multiple_choice")
    ends = {1e-6: plain, 0.5: 2 - 2 * np.exp(-plain / 2), 1: 1 - np.exp(-plain)}
    for power, expected in ends.items():
        _, _, bounded = losses(lm, tasks, "multiple_choice", SurrogateLossConfig(power=power))
        np.testing.assert_allclose(bounded, expected, rtol=1e-4)


def test_tasks_without_a_loss_are_refused_by_name():
    check_losses({"a": "multiple_choice", "b": "generate_until"}, "initial[0]")
    with pytest.raises(InputError, match=r"initial\[0\]: own \(callable\) has no loss"):
        check_losses({"a": "multiple_choice", "own": "callable"}, "initial[0]")


def entropy(logits):
    logs = logits.log_softmax(-1)
    return float(-(logs.exp() * logs).sum(-1).mean())


def test_choices_without_labels_lose_the_entropy_of_their_distribution(lm, tasks):
    tasks.write("t", "multiple_choice")
    _, found, values = losses(lm, tasks, "multiple_choice", loss={"kind": "entropy"})
    for loss, value in zip(found[:4], values, strict=False):
        own = torch.from_numpy(stock_loglikelihoods(lm, loss.pairs))
        assert value == pytest.approx(entropy(own), rel=1e-4)


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
def test_others_lose_the_entropy_of_the_next_token(kind, lm, tasks):
    """At a target's tokens, or at the last of a prompt, the one that comes next among them."""
    tasks.write("t", kind)
    documents, _, values = losses(lm, tasks, kind, loss={"kind": "entropy", "tokens": 3})
    for document, value in list(zip(documents, values, strict=True))[:4]:
        tokens = torch.tensor([lm.tok_encode(f"q : {document['question']} a :")])
        logits = lm.model(tokens).logits[0]
        places = logits[-1:] if kind == "loglikelihood" else logits[-3:]
        assert value == pytest.approx(entropy(places.detach()), rel=1e-4)


def test_every_task_needs_a_teacher_where_experts_teach():
    loss = SurrogateLossConfig(kind="experts", teachers={"a": "math"})
    kinds = {"a": "multiple_choice", "own": "agreement"}
    check_losses(kinds, "initial[0]", loss)
    with pytest.raises(InputError, match=r"surrogate_loss\.teachers: b has no expert to learn"):
        check_losses({**kinds, "b": "loglikelihood"}, "initial[0]", loss)
