"""Every campaign in search_spaces/ holds together, as far as can be seen without the hub."""

from __future__ import annotations

import json
import random
import shutil
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import pytest
import stand_ins
from silent import Silent

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.campaign.stages import check_later, stages_of
from evomerge.config import load_campaign
from evomerge.export.trial import export_trial
from evomerge.judging.scores import Judge
from evomerge.recipe import BASE
from evomerge.study.run_folder import open_run

FOLDER = Path(__file__).parents[2] / "search_spaces"
CAMPAIGNS = sorted(path for path in FOLDER.rglob("*.yaml") if "\nmodels:" in path.read_text())
OF_HUB = [path for path in CAMPAIGNS if path.parent == FOLDER]
QUICK = [  # mergebench's tasks stand in folders that are found only by reading all of lm-eval's
    pytest.param(path, marks=[pytest.mark.slow] if path.stem == "mergebench" else [])
    for path in OF_HUB
]
TASKS = FOLDER / "tasks"
SMALL = ["fitness.splits={search: 4, select: 2, test: 2}", "fitness.batch_size=4"]


def identify(path):
    return str(path.relative_to(FOLDER))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(base, names) -> folders of random models of that base's architecture."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def save(base, name, seed):
        return str(stand_ins.save_model(folder / base / name, base, seed))

    return lambda base, names: {name: save(base, name, seed) for seed, name in enumerate(names)}


@pytest.fixture
def offline(tmp_path, monkeypatch, models):
    """(campaign's path, overrides) -> its config, with stand-ins for what lies on the hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load = datasets.load_dataset

    def load_dataset(path, name=None, **kwargs):
        read = load if path == "json" else stand_ins.load_dataset
        return read(path, name=name, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    shutil.copytree(TASKS, tmp_path / "tasks")
    steps = _steps(random.Random(0), 1000)
    (tmp_path / "tasks" / "data").mkdir()
    (tmp_path / "tasks" / "data" / "webshop_next_action.jsonl").write_text(steps)

    def stand_in(path, overrides=()):
        copy = tmp_path / path.name
        shutil.copy(path, copy)
        config = load_campaign(copy, overrides)
        given = models(config.models.base, (BASE, *config.models.experts))
        experts = {name: given[name] for name in config.models.experts}
        local = config.models.model_copy(update={"base": given[BASE], "experts": experts})
        # ifeval's own packages, one of which fetches data, are no requirement of the tests
        tasks = [task for task in config.fitness.tasks if task.task != "ifeval"]
        fitness = config.fitness.model_copy(update={"tasks": tasks})
        return config.model_copy(update={"models": local, "fitness": fitness})

    return stand_in


def _steps(draw, count):
    lines = []
    for number in range(count):
        actions = [f"click {draw.randrange(60)}" for _ in range(4)]
        step = {"prompt": f"Human: {number}", "choices": actions, "answer": draw.randrange(4)}
        lines.append(json.dumps(step) + "\n")
    return "".join(lines)


def test_there_is_a_campaign_for_every_seed_system():
    assert {path.stem for path in OF_HUB} == {
        "evollm_jp",
        "evollm_hybrid",
        "layer_swap_mgsm",
        "m2n2_math_agent",
        "long_to_short",
        "helpful_honest_harmless",
        "mergebench",
    }


@pytest.mark.parametrize("path", CAMPAIGNS, ids=identify)
def test_a_campaign_has_the_form_of_one(path):
    assert load_campaign(path).name


@pytest.mark.parametrize("path", OF_HUB, ids=identify)
def test_a_campaign_has_its_files_name_and_a_line_in_the_table(path):
    assert load_campaign(path).name == path.stem
    rows = (FOLDER / "README.md").read_text().splitlines()
    assert sum(line.startswith(f"| [`{path.name}`]") for line in rows) == 1


@pytest.mark.parametrize("path", QUICK, ids=identify)
def test_a_campaign_passes_every_check_on_models_and_data_of_the_named_kind(
    path, offline, tmp_path
):
    """Tasks, metrics, splits, methods, genes, paths, optimizers, stages: all but the hub itself."""
    config = offline(path)
    stages = stages_of(config, tmp_path / "run")
    setup = prepare(stages[0].config)
    check_later(setup, stages)
    assert sum(len(ids) for ids in setup.items["search"].values()) >= 100
    assert config.fitness.allow_test_sets == any(task.test_set for task in setup.tasks)
    rng = np.random.default_rng(0)
    for genome in (setup.space.initial, rng.random(setup.space.dimension)):
        recipe = setup.space.decode(genome)
        assert len(recipe.path) == setup.models.layout.layers
        assert set(recipe.sources) == {BASE, *config.models.experts}
    assert setup.space.dimension == DIMENSIONS[path.stem]
    for index in range(3):
        setup.space.decode(setup.optimizer.ask(index).genome)


DIMENSIONS = {
    "evollm_jp": 6,  # three models, a weight and a density each
    "evollm_hybrid": 6,
    "layer_swap_mgsm": 4,
    "m2n2_math_agent": 2 * (32 + 3),  # both models in every layer, embeddings, norm and head
    "long_to_short": 2 * (28 // 4 + 3),
    "helpful_honest_harmless": 3 * (32 + 3),
    "mergebench": 1 + 5 + 5 + 1,  # the method, a weight and a density each, consensus' lambda
}


def test_evollm_searches_what_the_paper_says(offline, tmp_path):
    config = offline(FOLDER / "evollm_hybrid.yaml")
    weights, flow = stages_of(config, tmp_path / "run")
    assert weights.config.optimizer.options["population"] == int(4 + 3 * np.log(6))
    setup = prepare(weights.config)
    with_winner = {**setup.models.sources, "blend": setup.models.sources["wizard"]}
    models = setup.models.__class__(setup.models.layout, with_winner, ())
    space = (
        setup.__class__(
            **{**vars(setup), "models": models}  # the first stage's winner stood in for
        )
        .with_config(flow.config)
        .space
    )
    slots = 2 * 32 * 3 - 2  # two models, three times, but for the ends
    assert space.dimension == slots
    assert {slot.source for slot in space.decode(space.initial).path} == {"blend"}


def test_mergebench_begins_at_the_authors_settings(offline):
    config = offline(FOLDER / "mergebench.yaml")
    tasks = [task for task in config.fitness.tasks if task.task == "math500_boxed"]
    fitness = config.fitness.model_copy(update={"tasks": tasks})
    space = prepare(config.model_copy(update={"fitness": fitness})).space
    merges = [space.decode(genome).merges[0] for genome in space.starts]
    given = [(m.method, m.experts["math"], m.parameters.get("lambda")) for m in merges]
    assert [method for method, _, _ in given] == [
        "task_arithmetic",
        "task_arithmetic",
        "ties",
        "dare_linear",
        "consensus",
        "localize_and_stitch",
    ]
    assert [own.get("weight") for _, own, _ in given[:4]] == pytest.approx([0.2, 0.4, 0.4, 0.4])
    assert [given[i][1]["density"] for i in (2, 3, 5)] == pytest.approx([0.3, 0.1, 0.1])
    assert given[4][1:] == ({"threshold": 0.5}, pytest.approx(0.4))


def test_a_front_is_of_accuracy_and_fewer_tokens(offline):
    judge: Judge = prepare(offline(FOLDER / "long_to_short.yaml")).judge
    assert judge.goals == 2
    assert dict(zip(judge.tasks, judge.signs, strict=True)) == {
        "math500_boxed": 1,
        "math500_boxed.response_tokens": -1,
    }


@pytest.mark.slow
@pytest.mark.parametrize("path", OF_HUB, ids=identify)
def test_a_campaign_runs_to_its_winner(path, offline, tmp_path):
    """On a few documents and the random models: two candidates a stage, select, test, export."""
    here = "workers.isolated=false"  # where the data sets are invented
    config = offline(path, [*SMALL, here, "budget.trials=2", "dtype.compute=float32"])
    given = config.fitness.tasks
    tasks = [
        task.model_copy(update={"gen_kwargs": {"max_gen_toks": 3}, "num_fewshot": 0})
        for task in (given if len(given) < 4 else given[1:2])
    ]
    stages = [stage.model_copy(update={"trials": 2}) for stage in config.stages]
    fitness = config.fitness.model_copy(update={"tasks": tasks, "select_top": 1})
    config = config.model_copy(update={"fitness": fitness, "stages": stages})
    folder = tmp_path / "run"
    first = stages_of(config, folder)[0]
    with open_campaign(prepare(first.config), first.folder, Silent()) as campaign:
        campaign.run()
    _, study = open_run(first.folder)
    assert sum(e.optimizers_own for e in study.evaluations()) == 2
    assert not any(e.failed for e in study.evaluations())
    out = export_trial(first.config, study, None, tmp_path / "winner", anyway=True)
    assert (out / "config.json").is_file()
