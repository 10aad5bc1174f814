"""A worker on a simulated GPU: the CPU's scores, weights and gradients; memory as planned."""

from __future__ import annotations

import gc
import json

import numpy as np
import pytest
import tiny
import yaml
from simulated_accelerator import NAME, running
from torch.nn.attention import SDPBackend, sdpa_kernel

from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.materialize.memory import gpu_memory
from evomerge.materialize.plan import plan
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


@pytest.mark.parametrize("placement", ["cached", "prefetched"])
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
        assert {k: v.tolist() for k, v in found.scores.items()} == {
            k: v.tolist() for k, v in whole.scores.items()
        }
        # a worker that is told so begins there, and does not run out again
        del worker
        gc.collect()
        device.ran_out = 0
        spec = WorkerSpec(config, setup.items, threads=1, facts=found.facts)
        again = Worker(spec).measure(recipes[0], "search")
        assert again.facts == found.facts
    assert_scores = {k: v.tolist() for k, v in again.scores.items()}
    assert assert_scores == {k: v.tolist() for k, v in on_cpu[0][0][0].scores.items()}


def test_a_first_pass_is_measured_and_sizes_the_others(setup, recipes):
    with running(capacity=32 << 20) as device:
        found = worker_of(setup).measure(recipes[0], "search")
        assert device.ran_out == 0
        assert 256 <= found.facts["batch_tokens"] < 1 << 18
