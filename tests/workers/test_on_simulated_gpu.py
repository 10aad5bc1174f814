"""A worker on a simulated GPU: the CPU's scores, weights and gradients; memory as planned."""

from __future__ import annotations

import gc
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import yaml
from simulated_accelerator import NAME, running
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig

import evomerge
from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.fitness.inference import memory
from evomerge.materialize.memory import gpu_memory
from evomerge.materialize.plan import plan
from evomerge.models.layout import derive_layout
from evomerge.workers.worker import MIXED, Worker, WorkerSpec

SPACE = {
    "weights": {
        "method": "ties",
        "granularity": "layer",
        "genes": {"weight": [0, 1.5], "density": 0.7, "lambda": [0.5, 1.5]},
    }
}
NUMBERS = 1 << 12
"""More than the bytes of a recipe's numbers."""


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """Tiny models in float32, a task of choices and one of answers."""
    folder = tmp_path_factory.mktemp("campaign")
    tiny.save_family(folder / "models")
    tiny.save_task(folder / "tasks", items=24)
    documents = [{"q": f"w{i} w{i + 1}", "a": f"w{i + 2} w3"} for i in range(20)]
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    (folder / "tasks" / "say.jsonl").write_text(lines)
    task = tiny.generation_task("say", "{{a}}")
    (folder / "tasks" / "say.yaml").write_text(yaml.safe_dump(task))
    data = tiny.campaign_data(dtype={"weights": "float32", "compute": "float32"}, space=SPACE)
    data["fitness"]["tasks"].append({"task": "say", "metric": "exact_match"})
    data["fitness"]["batch_size"] = 8
    (folder / "campaign.yaml").write_text(yaml.safe_dump(data))
    return prepare(load_campaign(folder / "campaign.yaml"))


@pytest.fixture(scope="module")
def recipes(setup):
    first = setup.space.initial
    return [setup.space.decode(first), setup.space.decode(first * 0.7)]


def worker_of(setup, **facts):
    return Worker(WorkerSpec(setup.config, setup.items, threads=1, facts=facts))


def few(setup):
    return {task: ids[:5] for task, ids in setup.items["search"].items()}


def looked_at(worker, recipe, setup):
    """What a worker finds out about a recipe."""
    found = worker.measure(recipe, "search", counted=True)
    record = dict(worker.weights(recipe))
    record.pop("device")
    return found, record


@pytest.fixture(scope="module")
def on_cpu(setup, recipes):
    # the device has one kind of attention; others round differently
    with sdpa_kernel(SDPBackend.MATH):
        worker = worker_of(setup)
        found = [looked_at(worker, recipe, setup) for recipe in recipes]
        gradient = worker.gradient(recipes[0], few(setup), dict.fromkeys(few(setup), 1.0))
    return found, gradient


def assert_same(found, expected):
    (ours, weights), (theirs, their_weights) = found, expected
    assert weights == their_weights
    for task, scores in theirs.scores.items():
        assert np.array_equal(ours.scores[task], scores), task
    for task, facts in theirs.answers.items():
        assert np.array_equal(ours.answers[task].tokens, facts.tokens), task


def of_steps(setup, recipe):
    """Bytes of all tensors that a recipe's steps read."""
    sources = setup.models.sources
    steps = plan(recipe, setup.models.layout, sources)
    return sum(sources[name].read(step.tensor.name).nbytes for step in steps for name in step.reads)


@pytest.mark.parametrize(
    "placement", [pytest.param("cached", marks=pytest.mark.slow), "prefetched"]
)
def test_scores_and_weights_are_the_cpus_and_copies_are_the_plans(
    setup, recipes, on_cpu, monkeypatch, placement
):
    monkeypatch.setattr(gpu_memory.GpuMemoryPlan, "placement", placement)
    with running() as device:
        worker = worker_of(setup)
        assert {p.device.type for p in worker._engine.lm.model.parameters()} == {NAME}
        for number, recipe in enumerate(recipes):
            before = device.to_device
            worker._engine.load(recipe)
            wanted = of_steps(setup, recipe) if number == 0 or placement == "prefetched" else 0
            assert wanted <= device.to_device - before <= wanted + NUMBERS
            assert_same(looked_at(worker, recipe, setup), on_cpu[0][number])


def test_gradients_are_the_cpus(setup, recipes, on_cpu):
    expected = on_cpu[1]
    with running():
        found = worker_of(setup).gradient(recipes[0], few(setup), dict.fromkeys(few(setup), 1.0))
    for task, losses in expected.losses.items():
        assert np.array_equal(found.losses[task], losses)
    for key, value in expected.derivatives[MIXED].items():  # sums are over other slices
        assert found.derivatives[MIXED][key] == pytest.approx(value, abs=1e-6)


@pytest.mark.slow
def test_memory_that_ends_halves_batches_and_what_worked_is_kept(setup, recipes, on_cpu):
    config = setup.config.model_copy(
        update={"fitness": setup.config.fitness.model_copy(update={"batch_size": 64})}
    )
    with running() as device:
        worker = Worker(WorkerSpec(config, setup.items, threads=1, facts={"batch_tokens": 4096}))
        worker._engine.load(recipes[0])
        whole = looked_at(worker, recipes[0], setup)[0]
        assert whole.facts["batch_tokens"] == 4096
        # a part of what the first pass took
        device.capacity = device.live + (device.peak - device.live) // 3
        found = worker.measure(recipes[0], "search", setup.items["search"])
        assert device.ran_out > 1
        assert found.facts["batch_tokens"] < 4096
        assert all(np.array_equal(found.scores[task], whole.scores[task]) for task in found.scores)
        # a worker that is told so begins there, and does not run out again
        del worker
        gc.collect()
        device.ran_out = 0
        spec = WorkerSpec(config, setup.items, threads=1, facts=found.facts)
        again = Worker(spec).measure(recipes[0], "search")
        assert again.facts == found.facts
    expected = on_cpu[0][0][0].scores
    assert all(np.array_equal(again.scores[task], expected[task]) for task in expected)


@pytest.mark.slow
def test_a_first_pass_is_measured_and_sizes_the_others(setup, recipes):
    with running(capacity=32 << 20) as device:
        found = worker_of(setup).measure(recipes[0], "search")
        assert device.ran_out == 0
        assert 256 <= found.facts["batch_tokens"] < 1 << 18


LARGE = {
    "7 B": (4096, 14_336, 32, 32, 8, 32_000),
    "13 B": (5120, 13_824, 40, 40, 40, 32_000),
    "70 B": (8192, 28_672, 80, 64, 8, 128_256),
}
"""Name → hidden size, inner size, layers, heads, key-value heads, vocabulary."""
PLANS = {
    "7 B": ("prefetched", "prefetched", "cached", "cached"),
    "13 B": ("refused", "prefetched", "prefetched", "cached"),
    "70 B": ("refused", "refused", "refused", "refused"),
}
"""Name → where the sources lie on GPUs of 24, 48, 80 and 141 GB; refused: no candidate fits."""
GPUS = (24, 48, 80, 141)
WIDTH = 32
"""How many times narrower the models of the tests are; bytes are fewer by its square."""
OF_DRIVER = 1 << 30
"""Bytes of a GPU that its driver and PyTorch take."""


def shapes(name, narrower=1):
    hidden, inner, layers, heads, kv_heads, vocabulary = LARGE[name]
    return {
        "vocab_size": vocabulary // narrower,
        "hidden_size": hidden // narrower,
        "intermediate_size": inner // narrower,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, heads * 4 // narrower) if narrower > 1 else heads,
        "num_key_value_heads": max(1, kv_heads * 4 // narrower) if narrower > 1 else kv_heads,
    }


def needs_of(name):
    """What a base and two experts in bf16 need, and four requests at a time."""
    config = LlamaConfig(**shapes(name))
    source = SimpleNamespace(config=config, dtype=lambda tensor: torch.bfloat16)
    sources = dict.fromkeys(("base", "a", "b"), source)
    return gpu_memory.needs_of(sources, derive_layout(config), torch.bfloat16, 4)


def free(gigabytes, narrower=1):
    return (int(gigabytes * 1e9) - OF_DRIVER) // narrower**2


def outcome(needs, gigabytes):
    found = gpu_memory.GpuMemoryPlan(needs, free(gigabytes), pinnable=1 << 40)
    try:
        found.check()
    except InputError:
        return "refused"
    return found.placement


@pytest.mark.parametrize("name", LARGE)
def test_where_the_sources_of_large_models_lie(name):
    needs = needs_of(name)
    assert tuple(outcome(needs, gigabytes) for gigabytes in GPUS) == PLANS[name]


@pytest.fixture
def to_scale(monkeypatch):
    """Requests, their logits and the first batch as much smaller as the models are narrower."""
    monkeypatch.setattr(gpu_memory, "TOKENS", gpu_memory.TOKENS // WIDTH)
    monkeypatch.setattr(gpu_memory, "ANSWER", gpu_memory.ANSWER / WIDTH)
    monkeypatch.setattr(memory, "FIRST", memory.FIRST // WIDTH)


def save_large(folder, name):
    """Narrow models of a large one's depth and ratios in bf16, with a campaign."""
    narrow = {**shapes(name, WIDTH), "max_position_embeddings": 64}
    tiny.save_family(folder / "models", dtype=torch.bfloat16, **narrow)
    tiny.save_task(folder / "tasks", items=8)
    data = tiny.campaign_data(dtype={"weights": "bfloat16", "compute": "bfloat16"}, chunk_mib=1)
    data["fitness"]["batch_size"] = 4
    (folder / "campaign.yaml").write_text(yaml.safe_dump(data))
    return prepare(load_campaign(folder / "campaign.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["7 B", "13 B"])
def test_workers_of_large_models_do_what_the_plan_says(name, tmp_path, to_scale):
    setup = save_large(tmp_path, name)
    recipes = [setup.space.decode(setup.space.initial * factor) for factor in (1, 0.5)]
    spec = WorkerSpec(setup.config, setup.items, threads=1)
    for gigabytes, wanted in zip(GPUS, PLANS[name], strict=True):
        with running(free(gigabytes, WIDTH)) as device:
            if wanted == "refused":
                with pytest.raises(InputError, match="give each worker more GPUs"):
                    Worker(spec)
                continue
            worker = Worker(spec)
            for recipe in recipes:
                before = device.to_device
                worker.measure(recipe, "search")
            copied = device.to_device - before  # the second candidate's
            assert device.ran_out == 0
            sources = of_steps(setup, recipes[1])
            assert copied < sources / 10 if wanted == "cached" else copied >= sources
            del worker
            gc.collect()


@pytest.mark.slow
def test_a_search_is_the_cpus_and_goes_on_where_it_was_stopped(tmp_path):
    file = tiny.save_campaign(tmp_path, dtype={"weights": "float32", "compute": "float32"})
    splits = ["fitness.splits={search: 8, select: 4, test: 4}"]
    with sdpa_kernel(SDPBackend.MATH):
        expected = evomerge.search(file, tmp_path / "cpu", trials=6, overrides=splits)
    with running() as device:
        for trials in (3, 6):
            before = device.to_device
            found = evomerge.search(file, tmp_path / "gpu", trials=trials, overrides=splits)
            assert device.to_device > before
    wanted, got = expected.trials(), found.trials()
    assert list(got["digest"]) == list(wanted["digest"])
    assert list(got["value"]) == list(wanted["value"])
    assert found.best()["scores"] == expected.best()["scores"]
