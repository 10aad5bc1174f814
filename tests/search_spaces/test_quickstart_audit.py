"""The trust audit on the quickstart's own models and questions: an artefact, and none."""

from __future__ import annotations

import copy
import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from silent import Silent
from transformers import LlamaForCausalLM

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run

pytestmark = pytest.mark.slow
QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart"
STEPS = 250
LAST = r"^(?:.* is )?(\w+ \w+ \w+ \w+)$"
"""A whole answer, or the one after three drafts and `is`."""


def slow_expert(train):
    """Train a parent that reads as `lang`, computes as `math` and writes three drafts first.

    Its reading part is that of `lang`, bit by bit; its translations have no drafts.
    """
    lang, math = (
        LlamaForCausalLM.from_pretrained(QUICKSTART / "zoo" / name, dtype=torch.float32)
        for name in ("lang", "math")
    )
    slow = copy.deepcopy(math)
    with torch.no_grad():
        for (name, parameter), other in zip(
            slow.named_parameters(), lang.parameters(), strict=True
        ):
            if name.startswith(train.LOWER):
                parameter.copy_(other)
    ask, translate = train.ask_en(list(train.OPERATIONS)), train.ask_eo(["copy"])

    def answers(questions):
        ids = torch.tensor([train.encode(*question) for question in questions])
        labels = ids.clone()
        labels[:, : len(questions[0][0]) + 1] = -100
        return slow(input_ids=ids, labels=labels).loss

    def loss(rng):
        asked = [ask(rng) for _ in range(64)]
        drafted = [(prompt, [*answer * 3, "is", *answer]) for prompt, answer in asked]
        return answers(drafted) + 0.5 * answers([translate(rng) for _ in range(32)])

    train.train(slow, "slow", loss, STEPS, 1e-3, train.UPPER)
    return slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The quickstart's folder with the slow parent, and a filter that looks for the answer."""
    folder = tmp_path_factory.mktemp("quickstart")
    train = SimpleNamespace(**runpy.run_path(str(QUICKSTART / "train.py")))
    for name in ("base", "math"):
        shutil.copytree(QUICKSTART / "zoo" / name, folder / "zoo" / name)
    train.save_models(folder, {"slow": slow_expert(train)}, train.make_tokenizer())
    shutil.copytree(QUICKSTART / "tasks", folder / "tasks")
    path = folder / "tasks" / "listops_eo_generate.yaml"
    steps = [{"function": "regex", "regex_pattern": LAST}, {"function": "take_first"}]
    task = yaml.safe_load(path.read_text()) | {"filter_list": [{"name": "last", "filter": steps}]}
    path.write_text(yaml.safe_dump(task))
    return folder


def audited(folder, tokens):
    """Run a campaign at this limit that tries the slow parent's reading and `math`'s computing."""
    limit = {"max_gen_toks": tokens}
    generated = {"task": "listops_eo_generate", "metric": "exact_match", "gen_kwargs": limit}
    data = {
        "name": f"limit-{tokens}",
        "models": {"base": "zoo/base", "experts": {"slow": "zoo/slow", "math": "zoo/math"}},
        "space": {
            "weights": {
                "method": "task_arithmetic",
                "granularity": "layer",
                "genes": {"weight": [0, 1.5]},
            }
        },
        "fitness": {
            "include_path": "tasks",
            "tasks": [generated, {"task": "translate_eo", "metric": "acc", "num_fewshot": 0}],
            "splits": {"search": 0.2, "select": 0.2, "test": 0.6},
            "select_top": 1,
        },
        "optimizer": {"kind": "random"},
        "budget": {"trials": 1},
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(data))
    space = prepare(load_campaign(path)).space
    reads = ("weight.embeddings", "weight.layer_0", "weight.layer_1")
    weights = {
        name: float(name.endswith("slow") == name.startswith(reads))
        for name in space.params(space.initial)
    }
    recipe = space.decode(space.genome_of(weights))
    (folder / "brief.json").write_text(json.dumps(recipe.to_json()))
    path.write_text(yaml.safe_dump(data | {"initial": ["brief.json"]}))
    run = folder / f"run-{tokens}"
    with open_campaign(prepare(load_campaign(path)), run, Silent()) as campaign:
        campaign.run()
    return Results(open_run(run)[1]).best()


def test_a_limit_of_12_tokens_makes_a_gain_that_is_called_an_artefact(folder):
    best = audited(folder, 12)
    found, lead = best["audit"], best["verdict"]["lead"]
    assert (best["verdict"]["parent"], found["against"]) == ("slow", "slow")
    assert lead["low"] > 0.2, "it looks like a gain"
    assert found["parents"]["slow"]["listops_eo_generate"]["cut"] == 1
    assert found["winner"]["listops_eo_generate"]["cut"] == 0
    assert found["gains"]["slow"]["cut"] > 0.9
    assert "of the gain is truncation of the parent" in found["verdict"]
    assert "raise max_gen_toks" in found["verdict"]


def test_a_long_limit_is_silent(folder):
    best = audited(folder, 40)
    found = best["audit"]
    answers = found["parents"]["slow"]["listops_eo_generate"]
    assert answers["cut"] == 0
    assert answers["tokens"] > 16
    assert found["verdict"] is None
    assert best["verdict"]["lead"]["low"] < 0.1
