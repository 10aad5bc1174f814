"""Scoring estimated from shapes, on the campaign's own tasks."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
import yaml
from configs import small_config
from live_bytes import LiveBytes
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2MoeConfig

from evomerge.config import FitnessConfig
from evomerge.fitness.inference.local_model import Local, make_lm
from evomerge.fitness.tasks.task_set import TaskSet
from evomerge.models.layout import derive_layout
from evomerge.models.tokens.tokenizer import load_tokenizer
from evomerge.preflight.estimate_scoring import ModelShape, ScoringEstimate, guessed_tokenizer

GENERATION = tiny.generation_task("write", "{{answer}}", "pick.jsonl", until="\n")
LAYER = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
"""Parameters of a layer of `small_config`, without its norms."""
WIDE = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`pick` and `write`; `shots`, `pick` with three examples; `many`, more of the same kind."""
    place = tmp_path_factory.mktemp("tasks")
    tiny.save_task(place)
    tiny.save_task(place, "many", 400)
    shots = yaml.safe_load((place / "pick.yaml").read_text())
    shots |= {"task": "shots", "num_fewshot": 3, "fewshot_config": {"sampler": "first_n"}}
    for task in (GENERATION, shots):
        (place / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    tiny.save_tokenizer(place)
    return place


def fitness_of(folder, task, rows=16, tokens=None):
    metric = "exact_match" if task == "write" else "acc"
    return FitnessConfig(
        include_path=str(folder),
        tasks=[{"task": task, "metric": metric}],
        batch_size=rows,
        engine={"kind": "hf", "batch_tokens": tokens},
    )


def estimate(folder, task, config=None, **batch):
    fitness = fitness_of(folder, task, **batch)
    local = Local(make_lm(tiny_model(small_config()), load_tokenizer(folder), 16))
    items = {one.task: one.ids for one in TaskSet(fitness, local).items}
    return ScoringEstimate(fitness, folder, config or small_config(), items, False), items


def tiny_model(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


class MadeUpRates:
    """A multiplication a second, and nothing else takes time."""

    copied, call = float("inf"), 0.0

    def multiplications(self, rows):
        return 1.0


def test_seconds_are_parameters_times_tokens(folder):
    found, _ = estimate(folder, "pick")
    tokens = sum(one.rows * one.length for one in found.passes)
    one, two = (found.seconds(layers, MadeUpRates(), 4) for layers in (1, 2))
    assert two - one == pytest.approx(tokens * LAYER, rel=0.1)  # attention is the rest
    logits = sum(one.logits for one in found.passes)
    assert one - (two - one) == pytest.approx(logits * 64 * 32)


def test_what_requests_have_in_common_counts_once(folder):
    read = {}
    for task in ("pick", "shots"):
        found, items = estimate(folder, task)
        tokens = sum(one.rows * one.length for one in found.passes)
        read[task] = tokens / len(items[task])
    assert 4.5 < read["pick"] <= 5.5  # five words; the choice is only predicted
    assert read["shots"] < 7  # and once, for all, three times as many of examples


def test_answers_are_taken_to_be_as_long_as_they_may(folder):
    found, items = estimate(folder, "write")
    generated = sum(one.rows * one.times for one in found.passes if one.length == 1)
    assert generated == 7 * len(items["write"])  # the first of eight is the prompt's
    assert max(one.cached for one in found.passes) >= 16 * 8


CONFIGS = {
    "llama": small_config(**WIDE),
    "eager": small_config(**WIDE, attn_implementation="eager"),
    "gpt2": GPT2Config(vocab_size=64, n_embd=128, n_layer=6, n_head=4, n_positions=64),
    "mixture": Qwen2MoeConfig(
        **WIDE,
        vocab_size=64,
        num_hidden_layers=6,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        shared_expert_intermediate_size=128,
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("task", ["many", "write"])
def test_memory_is_that_of_the_tensors_alive_at_a_time(folder, kind, task):
    batch = {"rows": 16, "tokens": 512}
    config = CONFIGS[kind]
    found, items = estimate(folder, task, config, **batch)
    fitness = fitness_of(folder, task, **batch)
    model = tiny_model(config)
    local = Local(make_lm(model, load_tokenizer(folder), batch["rows"]), batch["tokens"])
    tasks = TaskSet(fitness, local)
    tasks.score({name: ids[:2] for name, ids in items.items()})  # trials of the model come first
    with LiveBytes([*model.parameters(), *model.buffers()]) as counted:
        tasks.score(items)
    ratio = found.bytes(6, 4) / counted.peak
    assert 1 / 1.3 < ratio < 1.3


def test_of_a_mixture_the_experts_that_a_token_meets_count():
    config = CONFIGS["mixture"]
    layout = derive_layout(config)
    whole = sum(math.prod(t.shape) for t in layout.tensors if t.layer is not None) / 6
    experts = 4 * 3 * 128 * 128
    shape = ModelShape.of(config, layout)
    assert shape.parameters == pytest.approx(whole - experts / 2)
    assert shape.mlp == 2 * 128


def test_a_guessed_tokenizer_tells_texts_apart_and_leaves_answers_tokens():
    texts = ["What is the answer? Yes", "What is the answer? No", "数学の問題です。答えは12です"]
    tokenizer = guessed_tokenizer(1000, texts)
    encoded = [tokenizer.encode(text) for text in texts]
    assert encoded[0] != encoded[1]
    assert encoded[0][:-1] == encoded[1][:-1]
    assert 4 <= len(encoded[0]) <= 9
    assert tokenizer.unk_token_id not in encoded[2]
