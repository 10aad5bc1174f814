"""The templates that are to be filled in: their function runs, their engine's options exist."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
from lm_eval.api.instance import Instance
from running import evaluations, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.config import load_campaign
from evomerge.fitness.engines import check_engine
from evomerge.fitness.inference.local_model import Local, make_lm
from evomerge.fitness.tasks.task_set import TaskSet

TEMPLATES = Path(__file__).parents[2] / "search_spaces" / "templates"


def test_the_template_of_an_own_metric_scores_preferences(tmp_path):
    tiny.save_family(tmp_path / "models", experts=())
    lines = [{"prompt": f"w{i}", "better": f" w{i + 9} w2", "worse": " w3"} for i in range(6)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "preferences.jsonl").write_text(text)
    config = load_campaign(TEMPLATES / "own_metric.yaml").fitness
    own = config.tasks[1].model_copy(update={"documents": str(tmp_path / "preferences.jsonl")})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "base", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models" / "base")
    lm = make_lm(model, tokenizer, 4)
    tasks = TaskSet(config.model_copy(update={"tasks": [own]}), Local(lm))
    found = tasks.score({"preference": tasks.items[0].ids})["preference"]

    def loglikelihoods(key):
        asked = [(line["prompt"], line[key]) for line in lines]
        requests = [Instance("loglikelihood", {}, a, 0, ("t", 0, 1)) for a in asked]
        return [ll for ll, _ in lm.loglikelihood(requests, disable_tqdm=True)]

    pairs = zip(loglikelihoods("better"), loglikelihoods("worse"), strict=True)
    assert found.tolist() == pytest.approx([b - w for b, w in pairs], abs=1e-4)


@pytest.mark.slow
def test_the_second_stage_of_evo_merging_begins_at_the_shares_of_the_first(tmp_path):
    models = tiny.save_family(tmp_path / "models", experts=("math", "code", "chat"))
    tiny.save_task(tmp_path / "tasks")
    said = [
        f"models={{base: {models.pop('base')}, experts: {{{_listed(models)}}}}}",
        "fitness={tasks: [{task: pick, num_fewshot: 0}], include_path: tasks, select_top: 1}",
        "workers.isolated=false",
        "budget.trials=2",
    ]
    found = {}
    for stage in ("sparsity", "scale"):
        name = f"evo_merging_{stage}"
        shutil.copy(TEMPLATES / f"{name}.yaml", tmp_path / "campaign.yaml")
        run(tmp_path, tmp_path / "runs" / name, said)
        found[stage] = [
            e for e in evaluations(tmp_path / "runs" / name) if e.role == "search" and e.measured
        ]
    # 1. everything is kept at first; the best shares, each with 1/N, are where the second begins
    assert set(found["sparsity"][0].params.values()) == {1.0}
    best = max(found["sparsity"], key=lambda e: e.value)
    begun = found["scale"][0].params
    weights = {name: value for name, value in begun.items() if name.startswith("weight")}
    assert list(weights.values()) == pytest.approx([1 / 3] * 3)
    assert {n: v for n, v in begun.items() if n not in weights} == pytest.approx(best.params)


def _listed(models):
    return ", ".join(f"{name}: {path}" for name, path in models.items())


def test_the_template_of_a_served_model_has_options_that_exist():
    config = load_campaign(TEMPLATES / "served_model.yaml")
    check_engine(config, {"gsm8k": "generate_until"})
