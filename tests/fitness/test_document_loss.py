"""Losses of documents: their formulas, and their gradients against finite differences (fp64)."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from evomerge.common.errors import CandidateError
from evomerge.fitness.document_loss import (
    BoundedLoss,
    ChoiceEntropy,
    ExpertAndHiddenLoss,
    ExpertLoss,
    LastTokens,
    Reading,
    RightAnswerLoss,
    TokenEntropy,
)
from evomerge.fitness.expert_answers import ExpertAnswers, Question
from evomerge.fitness.inference.local_model import Local, make_lm

PROMPTS = ["q : w1 w2 a :", "w3 w4 w5", "q : w1 w9 w11 a :"]
LAYERS = "model.layers"


def asked(lm: HFLM, top_k: int = 5, tokens: int = 6) -> ExpertAnswers:
    return Local(lm).expert_answers(PROMPTS, Question(tokens, top_k, hidden=True), LAYERS)


def in_double(model):
    """The model in float64 throughout: its norms compute in float32 whatever its dtype."""

    def forward(states, norm):
        size = (states.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
        return norm.weight * states / size

    for module in model.double().modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = partial(forward, norm=module)
    return model


def losses_of(answers, kind):
    """A loss of each prompt."""
    found = []
    for prompt, answer in zip(PROMPTS, answers.each(), strict=True):
        pair = (prompt, tuple(answer.tokens.tolist()))
        found.append(
            {
                "experts": lambda pair=pair, one=answer: ExpertLoss((pair,), one),
                "hidden": lambda pair=pair, one=answer: ExpertAndHiddenLoss((pair,), one, 3.0),
                "tokens": lambda prompt=prompt: TokenEntropy(((prompt, LastTokens(4)),)),
                "target": lambda prompt=prompt: TokenEntropy(((prompt, " w7 w8"),)),
                "choices": lambda p=prompt: ChoiceEntropy(((p, " w1"), (p, " w2 w3"), (p, " w4"))),
                "right": lambda p=prompt: RightAnswerLoss(((p, " w1"), (p, " w2 w3")), (1,)),
                "bounded": lambda p=prompt: BoundedLoss(
                    ((p, " w1"),), RightAnswerLoss(((p, " w1"),)), 0.7
                ),
            }[kind]()
        )
    return found


@pytest.mark.parametrize(
    "kind", ["experts", "hidden", "tokens", "target", "choices", "right", "bounded"]
)
def test_gradients_are_those_of_finite_differences(kind, llama, tokenizer):
    answers = asked(make_lm(llama(seed=1), tokenizer, 8))
    model = in_double(llama())
    backward = Local(make_lm(model, tokenizer, 8)).backward(LAYERS, None)
    documents = [(loss, 0.3 + i) for i, loss in enumerate(losses_of(answers, kind))]
    found: dict[str, torch.Tensor] = {}
    names = {name: p for name, p in model.named_parameters() if "layers.0" in name}
    sinks = [(p, lambda gradient, n=name: found.update({n: gradient})) for name, p in names.items()]
    backward(documents, sinks)
    # along a direction over all of these parameters at once
    generator = torch.Generator().manual_seed(3)
    direction = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for name, p in names.items()
    }
    slope = sum(float((gradient * direction[name]).sum()) for name, gradient in found.items())
    ends = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for name, parameter in names.items():
                parameter.add_(step * direction[name])
        ends.append(backward(documents, []) @ [factor for _, factor in documents])
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("kind", ["experts", "hidden", "tokens", "choices"])
def test_losses_without_a_gradient_are_those_with_one(kind, llama, tokenizer):
    answers = asked(make_lm(llama(seed=1), tokenizer, 8))
    backward = Local(make_lm(llama(), tokenizer, 8)).backward(LAYERS, None)
    documents = losses_of(answers, kind)
    with_one = backward([(one, 1.0) for one in documents], [])
    np.testing.assert_allclose(backward.losses(documents), with_one, rtol=1e-4)
    again = documents[::-1] + documents  # one prompt of several documents
    np.testing.assert_allclose(backward.losses(again)[3:], with_one, rtol=1e-4)


@pytest.mark.parametrize("top_k", [1, 5, 1000])
def test_an_expert_has_nothing_to_learn_from_itself(top_k, lm):
    answers = asked(lm, top_k)
    backward = Local(lm).backward(LAYERS, None)
    for kind in ("experts", "hidden"):
        np.testing.assert_allclose(backward.losses(losses_of(answers, kind)), 0, atol=1e-5)


def test_the_divergence_is_that_over_the_likeliest_tokens_and_all_others_as_one(llama, tokenizer):
    expert, model = llama(seed=1), llama()
    answers = asked(make_lm(expert, tokenizer, 8), top_k=3)
    lm = make_lm(model, tokenizer, 8)
    values = Local(lm).backward(LAYERS, None).losses(losses_of(answers, "experts"))
    for prompt, answer, value in zip(PROMPTS, answers.each(), values, strict=True):
        tokens = torch.tensor([[*lm.tok_encode(prompt), *answer.tokens.tolist()]])
        at = slice(-len(answer.tokens) - 1, -1)
        p, q = (one(tokens).logits[0, at].detach().softmax(-1) for one in (expert, model))
        total = 0.0
        for theirs, ours in zip(p, q, strict=True):
            top = theirs.topk(3).indices
            rest = 1 - theirs[top].sum(), 1 - ours[top].sum()
            total += float((theirs[top] * (theirs[top] / ours[top]).log()).sum())
            total += float(rest[0] * (rest[0] / rest[1]).log())
        assert value == pytest.approx(total / len(answer.tokens), rel=1e-3)
        assert value <= float((p * (p / q).log()).sum(-1).mean()) + 1e-5


def test_hidden_states_are_those_after_half_of_the_layers(llama, tokenizer):
    expert = llama(seed=1)
    answers = asked(make_lm(expert, tokenizer, 8))
    lm = make_lm(expert, tokenizer, 8)
    for prompt, answer in zip(PROMPTS, answers.each(), strict=True):
        tokens = torch.tensor([[*lm.tok_encode(prompt), *answer.tokens.tolist()]])
        states = expert(tokens, output_hidden_states=True).hidden_states[1][0]
        expected = states[-len(answer.tokens) - 1 : -1].detach()
        np.testing.assert_allclose(answer.hidden, expected, rtol=1e-3, atol=1e-5)


def test_entropy_is_zero_for_the_sure_and_log_n_for_the_undecided():
    alike = [Reading(torch.tensor(-3.0), 1) for _ in range(4)]
    pairs = tuple(("a", one) for one in "bcde")
    assert ChoiceEntropy(pairs).of(alike).item() == pytest.approx(np.log(4))
    sure = [Reading(torch.tensor(value), 1) for value in (-1.0, -90.0, -95.0, -99.0)]
    assert ChoiceEntropy(pairs).of(sure).item() == pytest.approx(0, abs=1e-6)
    flat = Reading(torch.tensor(0.0), 2, torch.zeros(2, 8))
    assert TokenEntropy(pairs[:1]).of([flat]).item() == pytest.approx(np.log(8))


def test_a_loss_that_is_not_finite_is_refused(llama, tokenizer):
    answers = asked(make_lm(llama(seed=1), tokenizer, 8))
    broken = llama()
    backward = Local(make_lm(broken, tokenizer, 8)).backward(LAYERS, None)
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    for kind in ("experts", "tokens"):
        with pytest.raises(CandidateError, match="loss came out as nan"):
            backward.losses(losses_of(answers, kind))
