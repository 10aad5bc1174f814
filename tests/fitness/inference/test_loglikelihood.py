"""The own log-likelihood path agrees with HFLM's, and does less work."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, bloom
from lm_eval.api.instance import Instance
from shortage import OUT_OF_MEMORY, memory

from evomerge.common.errors import InputError
from evomerge.fitness.inference.forward import Forward
from evomerge.fitness.inference.local_model import Local, make_lm

PAIRS = [
    ("q : w1 w2 a :", " w3"),
    ("q : w1 w2 a :", " w4"),
    ("q : w1 w2 a :", " w5 w6 w7"),
    ("q : w1 w2 a :", " w5 w6"),
    ("q : w1 w2 a : ", "w3"),
    ("w9", " w8 w7 w6 w5"),
    ("", "w1"),
    ("", "w1 w2 w3"),
    ("", "<s> w1 w2"),
    ("<s> w4 w5", " w6"),
    (" ".join(f"w{i % 40}" for i in range(60)), " w1"),
    (" ".join(f"w{i % 37}" for i in range(60)), " w1 w2 w3 w4"),
    ("w3", " " + " ".join(f"w{i}" for i in range(24))),
    ("w1 w2 w3", " w4"),
    ("w1 w2 w3", " w4"),
]


def instances(pairs):
    return [Instance("loglikelihood", {}, pair, 0, ("t", i, 1)) for i, pair in enumerate(pairs)]


def headless(model):
    model.get_output_embeddings = lambda: None
    return model


def check(lm, pairs=PAIRS, tokens=None):
    expected = lm.loglikelihood(instances(pairs), disable_tqdm=True)
    found = answers(lm, pairs, tokens)
    assert [ll for ll, _ in found] == pytest.approx([ll for ll, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert len({round(ll, 3) for ll, _ in expected}) > len(pairs) / 2


def answers(lm, pairs, tokens=None):
    return [response.value for response in Local(lm, tokens).answer(instances(pairs))]


def tokens_read(model):
    """A list that grows by the shape of every forward pass's tokens."""
    shapes = []
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


@pytest.mark.parametrize("tokens", [1, 40, 4096])
def test_the_passes_that_will_be_run_are_known(tokens, llama, tokenizer):
    lm = make_lm(llama(), tokenizer, 4)
    local = Local(lm, tokens)
    planned = local.passes(instances(PAIRS))
    shapes = tokens_read(lm.model)
    local.answer(instances(PAIRS))
    assert [(one.rows, one.length) for one in planned] == [
        (rows, length) for rows, length in shapes
    ]


@pytest.mark.parametrize("tokens", [1, 40, 4096])
@pytest.mark.parametrize("family", FAMILIES)
def test_loglikelihoods_equal_hflm(family, tokens, tokenizer):
    check(make_lm(FAMILIES[family](), tokenizer, 4), tokens=tokens)


def test_loglikelihoods_equal_hflm_without_a_bos_token(llama, tokenizer_without_bos):
    check(make_lm(llama(length=24), tokenizer_without_bos, 4))


def test_loglikelihoods_equal_hflm_with_eager_attention(llama, tokenizer):
    model = llama(length=24)
    model.set_attn_implementation("eager")
    check(make_lm(model, tokenizer, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shares_beginnings(family, tokenizer):
    """Guards the tests above: without it they would compare plain rows."""
    model = FAMILIES[family]()
    assert Forward(model, model.device).packs()
    shapes = tokens_read(model)
    context = "q : " + " ".join(f"w{i}" for i in range(12))
    lm = make_lm(model, tokenizer, 4)
    engine = Local(lm)
    engine.answer(instances([(context, f" w{i} w{i + 1}") for i in range(4)]))
    assert shapes[-1] == (1, 15 + 4)


def test_questions_behind_the_same_examples_read_them_once(llama, tokenizer):
    model = llama(length=256)
    shapes = tokens_read(model)
    examples = " ".join(f"w{i}" for i in range(40))
    pairs = [(f"{examples} q : w{i} a :", f" w{j} w{i}") for i in range(12) for j in range(20, 24)]
    lm = make_lm(model, tokenizer, 8)
    expected = lm.loglikelihood(instances(pairs), disable_tqdm=True)
    shapes.clear()
    found = answers(lm, pairs)
    assert [ll for ll, _ in found] == pytest.approx([ll for ll, _ in expected], abs=1e-4)
    # <s>, the examples and "q :", then for each question its word, "a :" and four choices.
    assert shapes[-1] == (1, 1 + 40 + 2 + 12 * (3 + 4))


def test_a_model_that_makes_its_own_masks_is_read_row_by_row(tokenizer):
    model = bloom()
    assert not Forward(model, model.device).packs()
    check(make_lm(model, tokenizer, 4))


@pytest.mark.parametrize("unheeded", ["position_ids", "attention_mask"])
def test_a_model_that_does_not_heed_what_it_is_told_is_read_row_by_row(unheeded, llama, tokenizer):
    model = llama(length=24)
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **{**kwargs, unheeded: None})
    assert not Forward(model, model.device).packs()
    check(make_lm(model, tokenizer, 4))


def test_what_a_model_can_do_is_not_judged_by_a_broken_candidate(llama, tokenizer):
    model = llama(length=24)
    forward, weight = Forward(model, model.device), model.model.norm.weight
    with torch.no_grad():
        kept = weight.clone()
        weight.fill_(float("nan"))
    assert not forward.packs()
    with torch.no_grad():
        weight.copy_(kept)
    assert forward.packs()


def test_soft_capping_stays_in_force(tokenizer):
    """Guards the test above: without the cap the numbers are others."""
    capped, free = FAMILIES["gemma2"](), FAMILIES["gemma2"]()
    free.config.final_logit_softcapping = None
    one, two = (answers(make_lm(model, tokenizer, 4), PAIRS) for model in (capped, free))
    assert max(abs(a - b) for (a, _), (b, _) in zip(one, two, strict=True)) > 0.1


def test_a_model_without_an_output_module_is_scored_on_full_logits(llama, tokenizer):
    check(make_lm(headless(llama(length=24)), tokenizer, 4))


def test_greedy_flags_equal_hflm_when_the_model_would_say_it(llama, tokenizer):
    lm = make_lm(llama(length=24), tokenizer, 4)
    words = [token for token in tokenizer.get_vocab() if token.startswith("w")]
    pairs = [("w1 w2 w3", f" {word}") for word in words]
    pairs += [(f"w{i}", f" {word}") for i in range(6) for word in words]
    check(lm, pairs)
    assert any(greedy for _, greedy in answers(lm, pairs))


def test_half_precision_models_are_scored_in_float32(llama, tokenizer):
    model = llama(length=24).to(torch.bfloat16)
    lm = make_lm(model, tokenizer, 1)
    assert Forward(model, model.device).packs()
    found = answers(lm, PAIRS)
    assert any(float(torch.tensor(ll).bfloat16()) != ll for ll, _ in found)
    expected = lm.loglikelihood(instances(PAIRS), disable_tqdm=True)
    assert [ll for ll, _ in found] == pytest.approx([ll for ll, _ in expected], rel=2e-2)


def test_choices_of_one_document_share_a_forward_and_the_head_sees_only_them(llama, tokenizer):
    model = llama(length=64)
    local = Local(make_lm(model, tokenizer, 8))
    local.answer(instances([("w1", " w2")]))  # the first call tries the model out
    seen = {"rows": tokens_read(model), "head": []}
    model.lm_head.register_forward_hook(
        lambda _, args, out: seen["head"].append(tuple(out.shape[:-1]))
    )
    context = "q : " + " ".join(f"w{i}" for i in range(20))
    local.answer(instances([(context, f" w{i}") for i in range(4)] + [("w1", " w2 w3")]))
    assert seen == {"rows": [(2, 23)], "head": [(1, 3)]}
    assert not model.lm_head._forward_pre_hooks


def test_tokens_are_made_once(llama, tokenizer, monkeypatch):
    lm = make_lm(llama(), tokenizer, 8)
    local = Local(lm)
    local.prepare(instances(PAIRS[:6]))
    first = local.answer(instances(PAIRS[:6]))
    monkeypatch.setattr(lm, "tok_encode", pytest.fail)
    assert local.answer(instances(PAIRS[:6])) == first


def test_a_continuation_the_model_cannot_score_is_refused(llama, tokenizer):
    local = Local(make_lm(llama(length=8), tokenizer, 4))
    for pair in (("w1", ""), ("w1", " w2" * 9)):
        with pytest.raises(InputError, match="can score 1 to 8"):
            local.prepare(instances([pair]))


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_without_the_memory_batches_are_halved_until_they_fit(error, llama, tokenizer):
    model = llama(length=24)
    lm = make_lm(model, tokenizer, 4)
    expected = answers(lm, PAIRS, 64)
    asked = memory(model, 30, error)
    local = Local(lm, 64)
    found = [response.value for response in local.answer(instances(PAIRS))]
    assert [ll for ll, _ in found] == pytest.approx([ll for ll, _ in expected], abs=1e-4)
    assert max(asked) > 30
    assert 15 <= local.budget.tokens <= 30
    asked.clear()
    again = [response.value for response in local.answer(instances(PAIRS))]
    assert [ll for ll, _ in again] == pytest.approx([ll for ll, _ in expected], abs=1e-4)
    assert max(asked) <= 30  # it remembers


def test_a_row_that_does_not_fit_alone_fails_the_candidate(llama, tokenizer):
    model = llama(length=24)
    lm = make_lm(model, tokenizer, 4)
    memory(model, 10, OUT_OF_MEMORY["host"])
    with pytest.raises(MemoryError):
        answers(lm, PAIRS)


def test_other_errors_are_not_taken_for_a_lack_of_memory(llama, tokenizer):
    model = llama(length=24)
    lm = make_lm(model, tokenizer, 4)
    memory(model, 30, RuntimeError("sizes do not match"))
    local = Local(lm, 64)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        local.answer(instances(PAIRS))
    assert local.budget.tokens == 64
