"""A worker differentiates losses in the coefficients of a recipe on its resident model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny
import yaml

from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign
from evomerge.fitness.inference import backward
from evomerge.recipe import Recipe
from evomerge.workers.worker import MIXED, Worker, WorkerSpec

SPACE = {
    "weights": {
        "method": "ties",
        "granularity": "layer",
        "genes": {"weight": [0, 1.5], "density": 0.7, "lambda": [0.5, 1.5]},
    }
}


def save_generation(folder):
    """Documents of a question and a word to write after it."""
    documents = [{"q": f"w{i} w{i + 1}", "a": f"w{i + 2} w3"} for i in range(40)]
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    (folder / "tasks" / "say.jsonl").write_text(lines)
    task = tiny.generation_task("say", "{{a}}")
    (folder / "tasks" / "say.yaml").write_text(yaml.safe_dump(task))


def build(folder, overrides=(), **sections):
    """A set-up of the tiny models with two tasks, and a worker for it."""
    save_generation(folder)
    sections.setdefault("space", SPACE)
    tiny.save_campaign(folder, dtype={"weights": "float32", "compute": "float32"}, **sections)
    data = yaml.safe_load((folder / "campaign.yaml").read_text())
    data["fitness"]["tasks"].append({"task": "say", "metric": "exact_match"})
    (folder / "campaign.yaml").write_text(yaml.safe_dump(data))
    setup = prepare(load_campaign(folder / "campaign.yaml", overrides))
    spec = WorkerSpec(setup.config, setup.items, threads=1, teachers=setup.teachers)
    return setup, Worker(spec)


def few(setup, count=6):
    return {task: ids[:count] for task, ids in setup.items["search"].items()}


def moved(recipe, key, by):
    """The recipe with one coefficient changed."""
    data = recipe.to_json()
    for merge in data["merges"]:
        if (merge["slot"], merge["group"]) == key[:2]:
            owner = merge["parameters"] if key.expert is None else merge["experts"][key.expert]
            owner[key.parameter] += by
    return Recipe.from_json(data)


@pytest.fixture
def built(tiny_folder):
    return build(tiny_folder)


LOSSES = [
    "{kind: supervised}",
    "{kind: entropy}",
    "{kind: experts, teachers: {pick: math, say: lang}, top_k: 8, tokens: 5}",
]


@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives_are_those_of_the_losses(loss, tiny_folder):
    setup, worker = build(tiny_folder, [f"fitness.surrogate_loss={loss}"])
    items, recipe = few(setup), setup.space.decode(setup.space.initial)
    found = worker.gradient(recipe, items)
    assert set(found.derivatives) == {"pick", "say"}
    for task in items:
        derivatives = found.derivatives[task]
        largest = sorted(derivatives, key=lambda key: -abs(derivatives[key]))[:3]
        noise = 0.05 * abs(derivatives[largest[0]])
        assert noise > 1e-6
        for key in largest:
            ends = [worker.losses(moved(recipe, key, by), items) for by in (1e-2, -1e-2)]
            change = [end.losses[task].mean() for end in ends]
            slope = (change[0] - change[1]) / 2e-2
            assert derivatives[key] == pytest.approx(slope, abs=noise), key


def test_losses_of_a_gradient_are_those_without_one(built):
    setup, worker = built
    items, recipe = few(setup), setup.space.decode(setup.space.initial)
    with_gradient, without = worker.gradient(recipe, items), worker.losses(recipe, items)
    for task in items:
        np.testing.assert_allclose(with_gradient.losses[task], without.losses[task], rtol=1e-4)


def test_weighted_tasks_add_up_in_one_pass(built):
    setup, worker = built
    items, recipe = few(setup), setup.space.decode(setup.space.initial)
    each = worker.gradient(recipe, items).derivatives
    both = worker.gradient(recipe, items, {"pick": 0.25, "say": 0.75}).derivatives[MIXED]
    for key, value in both.items():
        expected = 0.25 * each["pick"][key] + 0.75 * each["say"][key]
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_gradient_is_the_same_again_and_scores_are_what_they_were(built):
    setup, worker = built
    items, recipe = few(setup), setup.space.decode(setup.space.initial)
    before = worker.measure(recipe, "search", items).scores
    first = worker.gradient(recipe, items).derivatives
    assert worker.gradient(recipe, items).derivatives == first
    after = worker.measure(recipe, "search", items).scores
    for task in items:
        np.testing.assert_array_equal(before[task], after[task])


def test_micro_batches_and_checkpointed_layers_change_nothing_but_rounding(built, monkeypatch):
    setup, worker = built
    items, recipe = few(setup), setup.space.decode(setup.space.initial)
    whole = worker.gradient(recipe, items).derivatives
    monkeypatch.setattr(backward.Backward, "_room", lambda self: 1)
    cramped = Worker(WorkerSpec(setup.config, setup.items, threads=1))
    cramped.gradient(recipe, items)  # measures
    found = cramped.gradient(recipe, items)
    assert found.facts["gradient_tokens"] == 1  # every document alone, its layers checkpointed
    for task, derivatives in found.derivatives.items():
        for key, value in derivatives.items():
            assert value == pytest.approx(whole[task][key], rel=1e-3, abs=1e-5)


def test_losses_without_labels_are_the_same_again(tiny_folder):
    setup, worker = build(tiny_folder, [f"fitness.surrogate_loss={LOSSES[2]}"])
    items, recipe = few(setup), setup.space.decode(setup.space.initial)
    first = worker.gradient(recipe, items)
    other = worker.losses(setup.space.parents()["math"], items)  # another model between
    assert worker.gradient(recipe, items).derivatives == first.derivatives
    np.testing.assert_allclose(other.losses["pick"], 0, atol=1e-5)
    assert other.losses["say"].mean() > 1e-4


def test_other_splits_documents_are_refused(built):
    setup, worker = built
    items = {"pick": setup.items["test"]["pick"][:1]}
    with pytest.raises(InputError, match=r"pick: item .* is not of the search split"):
        worker.gradient(setup.space.decode(setup.space.initial), items)


@pytest.mark.parametrize(
    ("section", "tied"),
    [
        ({"path": {"kind": "given", "layers": [0, 1, 0]}, "lines": {}}, False),
        ({"method": "slerp", "genes": {"t": [0.1, 0.9]}}, True),
        ({"dare": {"density": 0.5}}, True),
    ],
)
def test_genes_move_losses_as_the_pass_and_the_chain_rule_say(section, tied, tiny_folder):
    """Through repeated layers, LiNeS, tied embeddings, spheres and dropped entries."""
    if tied:
        shutil.rmtree(tiny_folder / "models")
        tiny.save_family(tiny_folder / "models", tie_word_embeddings=True)
    path = section.pop("path", "none")
    weights = {"method": "task_arithmetic", "genes": {"weight": [0, 1.5]}, **section}
    setup, worker = build(tiny_folder, space={"weights": weights, "path": path})
    items, genome = few(setup), np.clip(setup.space.initial, 0.3, 0.7)
    found = worker.gradient(setup.space.decode(genome), items, {"pick": 0.5, "say": 0.5})
    gradient = setup.space.pull_back(genome, found.derivatives[MIXED])
    for index in np.argsort(-np.abs(gradient))[:3]:
        ends = []
        for by in (1e-2, -1e-2):
            there = genome.copy()
            there[index] += by
            losses = worker.losses(setup.space.decode(there), items).losses
            ends.append(np.mean([values.mean() for values in losses.values()]))
        slope = (ends[0] - ends[1]) / 2e-2
        assert gradient[index] == pytest.approx(slope, rel=0.05, abs=2e-4), setup.space.genes[index]
