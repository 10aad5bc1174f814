"""A campaign that makes one mixture smaller: several goals, killed and resumed, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from mixtures import mixture
from running import evaluations, facts, run
from transformers import AutoModelForCausalLM

from evomerge.campaign.calibrate import calibrate_campaign
from evomerge.campaign.setup import prepare
from evomerge.common.errors import InputError
from evomerge.config import load_campaign, parse_campaign
from evomerge.export.trial import export_trial
from evomerge.materialize.disk.weight_record import record_weights
from evomerge.materialize.kernel import Kernel
from evomerge.materialize.memory.resident import Resident
from evomerge.models.checks.checked_models import check_models
from evomerge.recipe import load_recipe
from evomerge.study.run_folder import open_run, run_folder
from evomerge.workers.worker import Worker

GOALS = {"kind": "pareto", "of": ["pick", "pick.parameters"]}
GOALS |= {"prefer": {"best": "pick", "where": {"pick.parameters": {"at_most": 8000}}}}


def campaign(folder: Path, **sections) -> Path:
    """A campaign file over `models/mix`, a mixture of eight experts."""
    task = {"task": "pick", "num_fewshot": 0, "measures": ["parameters"]}
    data = tiny.campaign_data(
        models={"base": "models/mix", "experts": {}},
        space={"mixture": {"experts": [2, 8]}},
        optimizer={"kind": "nsga2"},
        budget={"trials": 8},
    )
    data["fitness"] |= {"tasks": [task], "objective": GOALS}
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump({**data, **sections}))
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smaller")
    mixture("qwen3_moe", num_experts=8).save_pretrained(folder / "models" / "mix")
    tiny.save_tokenizer(folder / "models" / "mix")
    tiny.save_task(folder / "tasks", items=30)
    return folder


@pytest.fixture(scope="module")
def whole(shared):
    """An uninterrupted run."""
    campaign(shared)
    return run(shared, shared / "whole")


def test_sizes_are_measured_and_the_winner_keeps_the_bound(whole, shared, tmp_path):
    found = [e for e in evaluations(whole) if e.split == "search"]
    sizes = {e.recipe.get("mixture", {}).get("experts"): e.scores for e in found}
    assert None in sizes
    assert len(sizes) > 2
    one = mixture("qwen3_moe", num_experts=8)
    parts = [w for n, w in one.named_parameters() if ".experts." in n or n.endswith("gate.weight")]
    whole_size = sum(weight.numel() for weight in one.parameters())
    an_expert = sum(weight[0].numel() for weight in parts)
    for experts, scores in sizes.items():
        size = whole_size - (8 - (experts or 8)) * an_expert
        assert (scores["pick.parameters"] == size).all()
    config, study = open_run(whole)
    out = export_trial(config, study, None, tmp_path / "out", run=run_folder(whole))
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert sum(weight.numel() for weight in loaded.parameters()) <= 8000
    assert "pick.parameters" not in (out / "README.md").read_text().partition("# out")[0]


def test_a_killed_campaign_goes_on_to_the_same_record(whole, shared, monkeypatch):
    measure, left = Worker.measure, [4]

    def dying(self, *args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise SystemExit("killed")
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(Worker, "measure", dying)
    campaign(shared)
    with pytest.raises(SystemExit):
        run(shared, shared / "killed")
    monkeypatch.setattr(Worker, "measure", measure)
    assert facts(run(shared, shared / "killed")) == facts(whole)


@pytest.mark.slow
def test_groups_by_the_router_come_from_the_campaigns_own_texts(shared):
    lines = [json.dumps({"text": f"w{i} w{i + 7} w{2 * i} w3 w{i + 1}"}) for i in range(9)]
    (shared / "texts.jsonl").write_text("\n".join(lines))
    space = {"mixture": {"experts": [2, 8], "groups": "router"}}
    path = campaign(shared, space=space, calibration={"documents": "texts.jsonl"})
    with pytest.raises(InputError, match=r"space.mixture.groups: router needs .*--kinds router"):
        prepare(load_campaign(path))
    [written] = calibrate_campaign(load_campaign(path))
    assert written.name == "base.safetensors"
    found = evaluations(run(shared, shared / "routed"))
    small = [e.recipe for e in found if "mixture" in e.recipe]
    assert {recipe["mixture"]["groups"] for recipe in small} == {"router"}
    assert all([*recipe["calibration"]] == ["base"] for recipe in small)


def test_a_dense_model_is_refused_by_key_file_and_way_out(shared, tiny_folder):
    path = campaign(tiny_folder, models={"base": "models/base", "experts": {}})
    with pytest.raises(InputError, match=r"space.mixture: .*base/config.json: Llama.* leave mix"):
        prepare(load_campaign(path))


def test_only_a_smaller_mixture_needs_no_experts(shared):
    weights = {"method": "ties", "genes": {"weight": [0, 1]}}
    path = campaign(shared, space={"weights": weights, "mixture": {"experts": [2, 8]}})
    with pytest.raises(InputError, match=r"models.experts: expected at least 1 entry"):
        load_campaign(path)


def test_a_smaller_mixture_is_the_last_stages(shared):
    stages = [{"name": "small", "space": {"mixture": {"experts": [2, 8]}}}]
    stages.append({"name": "again", "space": {"mixture": {"experts": [2, 4]}}})
    data = yaml.safe_load(campaign(shared).read_text())
    with pytest.raises(InputError, match=r"stages.small: its winner has fewer experts"):
        parse_campaign({**data, "stages": stages, "space": stages[0]["space"]}, "file.yaml")


@pytest.mark.slow
def test_a_merge_of_mixtures_is_searched_and_exported_with_its_size(shared, tmp_path):
    mixture("qwen3_moe", seed=1, num_experts=8).save_pretrained(shared / "models" / "other")
    tiny.save_tokenizer(shared / "models" / "other")
    weights = {"method": "linear", "granularity": "model", "genes": {"weight": [0, 1]}}
    sections = {
        "models": {"base": "models/mix", "experts": {"other": "models/other"}},
        "space": {"weights": weights, "mixture": {"experts": [2, 8]}},
        "initial": [{"gradient": {"steps": 2, "from": "uniform"}}],
        "optimizer": {"kind": "cma"},
    }
    path = campaign(shared, **sections)
    fitness = yaml.safe_load(path.read_text())["fitness"] | {"objective": "mean"}
    campaign(shared, **sections, fitness=fitness)
    found = evaluations(run(shared, shared / "both"))
    searched = [e.recipe for e in found if e.role == "search"]
    assert any("mixture" in recipe and recipe["merges"] for recipe in searched)
    assert all(torch.isfinite(torch.tensor(e.value)) for e in found if e.measured)
    config, study = open_run(shared / "both")
    trial = next(e.number for e in found if e.recipe in searched and "mixture" in e.recipe)
    out = export_trial(config, study, trial, tmp_path / "out", run=run_folder(shared / "both"))
    recipe = load_recipe(out / "recipe.json")
    models = check_models(config.models)
    made = Resident(models.layout, Kernel(models.sources), torch.float32)
    made.write(recipe)
    assert made.record(recipe).digest == record_weights(out, recipe, statistics=False).digest
