"""The own log-likelihood path agrees with HFLM's, and does less work."""

from __future__ import annotations

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from evomerge.errors import InputError
from evomerge.fitness.engine import Engine, make_lm

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


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def gemma2():
    return seeded(
        lambda: Gemma2ForCausalLM(
            Gemma2Config(
                vocab_size=50,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                max_position_embeddings=24,
                initializer_range=0.6,
                final_logit_softcapping=2.0,
                sliding_window=8,
            )
        )
    )


def gpt2():
    return seeded(
        lambda: GPT2LMHeadModel(
            GPT2Config(
                vocab_size=50,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=24,
                initializer_range=0.4,
            )
        )
    )


def headless(model):
    model.get_output_embeddings = lambda: None
    return model


def check(lm, pairs=PAIRS):
    expected = lm.loglikelihood(instances(pairs), disable_tqdm=True)
    found = Engine(lm).run(instances(pairs))
    assert [ll for ll, _ in found] == pytest.approx([ll for ll, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert len({round(ll, 3) for ll, _ in expected}) > len(pairs) / 2


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_loglikelihoods_equal_hflm(batch_size, llama, tokenizer):
    check(make_lm(llama(length=24), tokenizer, batch_size))


def test_loglikelihoods_equal_hflm_without_a_bos_token(llama, tokenizer_without_bos):
    check(make_lm(llama(length=24), tokenizer_without_bos, 4))


@pytest.mark.parametrize("build", [gemma2, gpt2])
def test_other_architectures_equal_hflm(build, tokenizer):
    check(make_lm(build(), tokenizer, 4))


def test_soft_capping_stays_in_force(tokenizer):
    """Guards the test above: without the cap the numbers are others."""
    capped, free = gemma2(), gemma2()
    free.config.final_logit_softcapping = None
    one = Engine(make_lm(capped, tokenizer, 4)).run(instances(PAIRS))
    two = Engine(make_lm(free, tokenizer, 4)).run(instances(PAIRS))
    assert max(abs(a - b) for (a, _), (b, _) in zip(one, two, strict=True)) > 0.1


def test_a_model_without_an_output_module_is_scored_on_full_logits(llama, tokenizer):
    check(make_lm(headless(llama(length=24)), tokenizer, 4))


def test_greedy_flags_equal_hflm_when_the_model_would_say_it(llama, tokenizer):
    lm = make_lm(llama(length=24), tokenizer, 4)
    words = [token for token in tokenizer.get_vocab() if token.startswith("w")]
    pairs = [("w1 w2 w3", f" {word}") for word in words]
    pairs += [(f"w{i}", f" {word}") for i in range(6) for word in words]
    check(lm, pairs)
    assert any(greedy for _, greedy in Engine(lm).run(instances(pairs)))


def test_half_precision_models_are_scored_in_float32(llama, tokenizer):
    model = llama(length=24).to(torch.bfloat16)
    lm = make_lm(model, tokenizer, 1)
    found = Engine(lm).run(instances(PAIRS))
    assert any(float(torch.tensor(ll).bfloat16()) != ll for ll, _ in found)
    expected = lm.loglikelihood(instances(PAIRS), disable_tqdm=True)
    assert [ll for ll, _ in found] == pytest.approx([ll for ll, _ in expected], rel=2e-2)


def test_choices_of_one_document_share_a_forward_and_the_head_sees_only_them(llama, tokenizer):
    model = llama(length=64)
    engine = Engine(make_lm(model, tokenizer, 8))
    seen = {"rows": [], "head": []}
    model.model.embed_tokens.register_forward_pre_hook(
        lambda _, args: seen["rows"].append(tuple(args[0].shape))
    )
    model.lm_head.register_forward_hook(
        lambda _, args, out: seen["head"].append(tuple(out.shape[:-1]))
    )
    context = "q : " + " ".join(f"w{i}" for i in range(20))
    engine.run(instances([(context, f" w{i}") for i in range(4)] + [("w1", " w2 w3")]))
    assert seen == {"rows": [(2, 23)], "head": [(1, 3)]}
    assert not model.lm_head._forward_pre_hooks


def test_tokens_are_made_once(llama, tokenizer, monkeypatch):
    lm = make_lm(llama(), tokenizer, 8)
    engine = Engine(lm)
    engine.encode(instances(PAIRS[:6]))
    first = engine.run(instances(PAIRS[:6]))
    monkeypatch.setattr(lm, "tok_encode", pytest.fail)
    assert engine.run(instances(PAIRS[:6])) == first


def test_a_continuation_the_model_cannot_score_is_refused(llama, tokenizer):
    engine = Engine(make_lm(llama(length=8), tokenizer, 4))
    for pair in (("w1", ""), ("w1", " w2" * 9)):
        with pytest.raises(InputError, match="can score 1 to 8"):
            engine.encode(instances([pair]))
