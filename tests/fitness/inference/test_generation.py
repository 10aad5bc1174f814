"""The own greedy loop says what lm-eval says, and stops where lm-eval stops."""

from __future__ import annotations

import random

import pytest
import torch
from families import FAMILIES, bloom
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from shortage import OUT_OF_MEMORY, memory

from evomerge.common.errors import CandidateError
from evomerge.fitness.inference.local_model import Local, make_lm

WORDS = [f"w{i}" for i in range(40)]
PLAIN = {
    "strings": {"until": ["w7", "w3 w3"], "max_gen_toks": 8, "do_sample": False},
    "one string": {"until": "w1", "max_gen_toks": 12},
    "none": {"until": [], "max_gen_toks": 5, "temperature": 0.0},
    "other names": {"until": ["w2"], "max_new_tokens": 6},
}
SAMPLED = {
    "sampled": {"until": ["w7"], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0},
    "beams": {"until": ["w7"], "max_gen_toks": 8, "do_sample": False, "num_beams": 2},
    "penalty": {"until": ["w7"], "max_gen_toks": 8, "repetition_penalty": 2.0},
}


def instances(settings, count=17, shared=6, longest=12):
    """Some share their beginning; some are longer than what the model reads, less its answer."""
    draw = random.Random(1)
    common = " ".join(draw.choices(WORDS, k=shared))
    contexts = [
        (common + " " if draw.random() < 0.6 else "")
        + " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))
        for _ in range(count)
    ]
    return [
        Instance("generate_until", {}, (context, settings), 0, ("t", i, 1))
        for i, context in enumerate(contexts)
    ]


def texts(local, requests):
    return [response.value for response in local.answer(requests)]


def without_lm_eval(monkeypatch):
    """lm-eval itself may not generate from now on."""
    monkeypatch.setattr(HFLM, "generate_until", lambda *_, **__: pytest.fail("left to lm-eval"))


@pytest.mark.parametrize("settings", PLAIN.values(), ids=PLAIN)
def test_answers_equal_lm_evals(settings, llama, tokenizer, monkeypatch):
    lm = make_lm(llama(length=24), tokenizer, 4)
    requests = instances(settings)
    expected = lm.generate_until(requests, disable_tqdm=True)
    without_lm_eval(monkeypatch)
    assert texts(Local(lm), requests) == expected
    assert len(set(expected)) > 8


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_lm_evals_whoever_is_beside_them(family, tokenizer, monkeypatch):
    lm = make_lm(FAMILIES[family](), tokenizer, 4)
    requests = instances(PLAIN["strings"])
    expected = lm.generate_until(requests, disable_tqdm=True)
    without_lm_eval(monkeypatch)
    for rows, tokens in ((1, 4096), (4, 30), (64, 4096)):
        assert texts(Local(make_lm(lm.model, tokenizer, rows), tokens), requests) == expected
    assert len(set(expected)) > 8


def test_the_tokens_that_its_passes_will_read_are_known(llama, tokenizer):
    lm = make_lm(llama(), tokenizer, 4)
    eos = torch.tensor([tokenizer.eos_token_id])
    lm.model.lm_head.register_forward_hook(lambda *args: args[-1].index_fill(-1, eos, -1e4))
    local = Local(lm, 30)
    requests = instances(PLAIN["none"])
    planned = local.passes(requests)
    read = []
    embeddings = lm.model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda _, args: read.append(args[0].numel()))
    lengths = {response.tokens for response in local.answer(requests, counted=True)}
    assert lengths == {5}
    assert sum(one.rows * one.length * one.times for one in planned) == sum(read)


def test_long_contexts_are_cut_on_the_left_as_lm_eval_does(llama, tokenizer, monkeypatch):
    lm = make_lm(llama(length=24), tokenizer, 4)
    requests = instances(PLAIN["strings"], longest=40)
    assert sum(len(lm.tok_encode(r.args[0])) > 24 - 8 for r in requests) > 5
    expected = lm.generate_until(requests, disable_tqdm=True)
    without_lm_eval(monkeypatch)
    assert texts(Local(lm), requests) == expected


def test_an_empty_string_stops_every_answer_at_once_as_in_lm_eval(llama, tokenizer, monkeypatch):
    lm = make_lm(llama(length=24), tokenizer, 4)
    requests = instances({"until": [""], "max_gen_toks": 6})
    expected = lm.generate_until(requests, disable_tqdm=True)
    without_lm_eval(monkeypatch)
    assert texts(Local(lm), requests) == expected
    assert max(len(text.split()) for text in expected) == 1


@pytest.mark.parametrize("settings", SAMPLED.values(), ids=SAMPLED)
def test_what_is_not_plain_greedy_is_left_to_lm_eval(settings, llama, tokenizer):
    lm = make_lm(llama(length=24), tokenizer, 4)
    requests = instances(settings)
    torch.manual_seed(3)
    expected = lm.generate_until(requests, disable_tqdm=True)
    torch.manual_seed(3)
    assert texts(Local(lm), requests) == expected
    greedy = texts(Local(lm), instances(PLAIN["strings"] | {"until": ["w7"]}))
    assert greedy != expected


def test_settings_of_the_model_that_change_greedy_decoding_count(llama, tokenizer):
    lm = make_lm(llama(length=24), tokenizer, 4)
    requests = instances(PLAIN["strings"])
    plain = texts(Local(lm), requests)
    lm.model.generation_config.repetition_penalty = 5.0
    expected = lm.generate_until(requests, disable_tqdm=True)
    assert texts(Local(lm), requests) == expected != plain


def test_settings_of_the_model_for_sampling_do_not(llama, tokenizer, monkeypatch):
    lm = make_lm(llama(length=24), tokenizer, 4)
    lm.model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, top_k=20)
    requests = instances(PLAIN["strings"])
    expected = lm.generate_until(requests, disable_tqdm=True)
    without_lm_eval(monkeypatch)
    assert texts(Local(lm), requests) == expected


def test_a_model_that_makes_its_own_masks_is_left_to_lm_eval(tokenizer):
    lm = make_lm(bloom(), tokenizer, 4)
    requests = instances(PLAIN["strings"])
    assert texts(Local(lm), requests) == lm.generate_until(requests, disable_tqdm=True)


def test_every_answer_is_what_lm_eval_gives_alone(llama, tokenizer):
    """A special token that stops is no text: in a batch, lm-eval goes on until all rows have it."""
    model = llama(length=24)
    model.generation_config.eos_token_id = None  # the tokenizer's is then a mere string
    requests = instances(PLAIN["strings"], count=40)
    alone = make_lm(model, tokenizer, 1).generate_until(requests, disable_tqdm=True)
    together = make_lm(model, tokenizer, 4).generate_until(requests, disable_tqdm=True)
    assert texts(Local(make_lm(model, tokenizer, 4)), requests) == alone != together


def test_rows_leave_when_they_are_done_and_others_take_their_place(llama, tokenizer):
    model = llama(length=48)
    lm = make_lm(model, tokenizer, 8)
    requests = instances({"until": ["w7", "w3 w3"], "max_gen_toks": 24}, count=24)
    steps = []
    local = Local(lm)
    local.answer(requests[:1])

    def watch(_, args, kwargs):
        if kwargs["input_ids"].shape[1] == 1:
            steps.append(kwargs["input_ids"].shape[0])

    hook = model.register_forward_pre_hook(watch, with_kwargs=True)
    answers = local.answer(requests, counted=True)
    hook.remove()
    lengths = [answer.tokens for answer in answers]
    assert max(steps) <= 8
    # The first token comes with the prompt. One row in eight may wait for others to leave.
    assert sum(lengths) - 24 <= sum(steps) < 1.3 * (sum(lengths) - 24)
    assert len(set(lengths)) > 4
    assert max(lengths) == 24


def test_a_row_at_the_models_last_position_may_wait_for_others_to_leave(tokenizer, monkeypatch):
    """GPT-2 has no position beyond it."""
    lm = make_lm(FAMILIES["gpt2"](), tokenizer, 4)
    short = []
    full = [Instance("generate_until", {}, (" ".join(WORDS), PLAIN["none"]), 0, ("t", 0, 1))]
    for i in range(32):
        settings = {"until": [], "max_gen_toks": 15}
        short.append(Instance("generate_until", {}, (f"w{i}", settings), 0, ("t", i, 1)))
    lm.model.generation_config.eos_token_id = None
    expected = make_lm(lm.model, tokenizer, 1).generate_until(full + short, disable_tqdm=True)
    without_lm_eval(monkeypatch)
    assert texts(Local(make_lm(lm.model, tokenizer, 33)), full + short) == expected


def test_prompts_that_begin_alike_are_read_once(llama, tokenizer):
    model = llama(length=96)
    lm = make_lm(model, tokenizer, 8)
    requests = instances({"until": [], "max_gen_toks": 1}, count=8, shared=40, longest=1)
    local = Local(lm)
    local.answer(requests)
    read = memory(model, 10**6, None)
    local.answer(requests)
    lengths = [len(lm.tok_encode(request.args[0])) for request in requests]
    sharing = sum(length > 40 for length in lengths)
    assert sharing == 4
    assert sum(read) < sum(lengths) - 2 * 40


def test_equal_requests_are_answered_once(llama, tokenizer):
    model = llama(length=24)
    local = Local(make_lm(model, tokenizer, 8))
    (request,) = instances(PLAIN["none"], count=1)
    local.answer([request])
    read = memory(model, 10**6, None)
    local.answer([request])
    once = list(read)
    read.clear()
    first, second, third = texts(local, [request] * 3)
    assert first == second == third
    assert read == once


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
@pytest.mark.parametrize("more", [{}, {"top_k": 50}], ids=["own", "left to lm_eval"])
def test_without_the_memory_rows_are_halved_until_they_fit(more, error, llama, tokenizer):
    model, settings = llama(length=32), PLAIN["strings"] | more
    lm = make_lm(model, tokenizer, 16)
    requests = instances(settings)
    expected = lm.generate_until(requests, disable_tqdm=True)
    local = Local(make_lm(model, tokenizer, 16))
    local.answer(requests[:1])
    asked = memory(model, 120, error)
    assert texts(local, requests) == expected
    assert max(asked) > 120
    asked.clear()
    assert texts(local, requests) == expected
    assert max(asked) <= 120  # it remembers


def test_a_row_that_does_not_fit_alone_fails_the_candidate(llama, tokenizer):
    model = llama(length=24)
    local = Local(make_lm(model, tokenizer, 4))
    local.answer(instances(PLAIN["none"], count=1))
    memory(model, 5, OUT_OF_MEMORY["host"])
    with pytest.raises(MemoryError):
        local.answer(instances(PLAIN["none"]))


def test_non_finite_logits_fail_the_candidate(llama, tokenizer):
    model = llama(length=24)
    local = Local(make_lm(model, tokenizer, 4))
    local.answer(instances(PLAIN["none"], count=1))
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(CandidateError, match="non-finite logits"):
        local.answer(instances(PLAIN["none"]))
