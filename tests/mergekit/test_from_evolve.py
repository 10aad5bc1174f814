"""Files of mergekit-evolve become campaigns that say the same, and list what they cannot say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from mergekit_files import EVOLVE

from evomerge.common.errors import InputError
from evomerge.config import parse_campaign
from evomerge.mergekit.from_evolve import from_evolve, is_evolve


def drafted(name, options="", gpus=0):
    draft = from_evolve(EVOLVE[name], f"{name}.yml", options, gpus)
    parse_campaign(draft.data, name)
    return draft


def weights(name):
    return drafted(name).data["space"]["weights"]


@pytest.mark.parametrize("name", EVOLVE)
def test_each_form_is_a_campaign(name):
    data = drafted(name).data
    assert data["models"]["base"] == "org/base"
    assert "math" in data["models"]["experts"]
    assert data["fitness"]["tasks"][0]["task"] == "pick"
    assert data["fitness"]["tasks"][0]["metric"] == "acc"


def test_signs_weights_and_layers_are_the_genomes():
    assert weights("blocks") == {
        "method": "task_arithmetic",
        "granularity": "layer",
        "genes": {"weight": [-0.5, 1], "normalize": False},
    }
    tasks = drafted("blocks").data["fitness"]["tasks"]
    assert [task.get("weight") for task in tasks] == [0.4, None]


def test_blocks_densities_and_an_explicit_normalize():
    found = weights("dare_ties")
    assert (found["granularity"], found["block"]) == ("block", 2)
    assert found["genes"] == {"weight": [0, 1], "density": [0.1, 1], "normalize": False}
    data = drafted("dare_ties").data
    assert data["fitness"]["splits"]["search"] == 12
    assert data["fitness"]["tasks"] == [{"task": "pick", "metric": "acc", "num_fewshot": 0}]
    assert data["models"]["tokenizer"] == {"source": "union"}
    assert any("org/base is among them" in text for text in drafted("dare_ties").unmatched)


def test_filters_of_single_layers_are_modules_and_longer_model_forms_are_read():
    assert weights("filters")["granularity"] == "module"
    assert weights("filters")["genes"]["normalize"] is True
    assert set(drafted("filters").data["models"]["experts"]) == {"math", "lang"}
    lost = " ".join(drafted("filters").unmatched)
    assert "random_init" in lost
    assert "shuffle" in lost


def test_filters_of_blocks_are_listed():
    text = EVOLVE["filters"].replace("layer_granularity: 1", "layer_granularity: 2")
    draft = from_evolve(text, "f.yml")
    assert draft.data["space"]["weights"]["granularity"] == "block"
    assert any(text.startswith("genome.filters: self_attn, mlp") for text in draft.unmatched)


def test_linear_weighs_the_base_that_is_one_of_the_models():
    assert weights("linear")["genes"] == {
        "weight": [0, 1],
        "base_weight": [0, 1],
        "normalize": True,
    }
    lost = " ".join(drafted("linear").unmatched)
    assert "smooth" in lost
    assert "other: weight 0" in lost


def test_slerp_of_two_is_slerp_and_of_three_is_listed():
    assert weights("slerp")["genes"] == {"t": [0, 1]}
    three = EVOLVE["slerp"].replace("org/math]", "org/math, org/lang]")
    draft = from_evolve(three, "f.yml")
    assert draft.data["space"]["weights"]["method"] == "multislerp"
    assert any("two models that weigh most" in text for text in draft.unmatched)


def test_options_go_where_they_belong_or_into_the_list():
    options = (
        "mergekit-evolve evolve.yml --max-fevals 240 --strategy buffered --num-gpus 4 --vllm \\\n"
        "--in-memory --storage-path /scratch --random-seed 7 --sigma0 0.3 --batch-size 16 "
        "--task-search-path tasks --task-search-path more --wandb --wandb-project merges "
        "--timeout 7200 --force-population-size 12 --trust-remote-code --load-in-4bit "
        "--no-save-final-model --allow-crimes "
        "--i-understand-the-depths-of-the-evils-i-am-unleashing"
    )
    draft = drafted("blocks", options)
    data, lost = draft.data, " ".join(draft.unmatched)
    assert data["budget"] == {"trials": 240, "hours": 2.0}
    assert data["workers"] == {"kind": "ray", "count": 4, "gpus_per_worker": 1}
    assert data["optimizer"] == {"kind": "cma", "sigma": 0.3, "population": 12}
    assert data["seed"] == 7
    assert data["trackers"] == [{"kind": "wandb", "project": "merges"}]
    assert data["models"]["trust_remote_code"] is True
    assert data["fitness"]["allow_test_sets"] is True
    assert data["fitness"]["batch_size"] == 16
    assert data["fitness"]["include_path"] == "tasks"
    for text in ("--vllm", "--load-in-4bit", "more: one folder", "--allow-crimes", "/scratch"):
        assert text in lost


def test_gpus_of_the_machine_are_used_but_by_a_serial_strategy():
    assert drafted("blocks", gpus=2).data["workers"]["count"] == 2
    assert "workers" not in drafted("blocks", "--strategy serial", gpus=2).data
    assert "workers" not in drafted("blocks", gpus=1).data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("genome: {models: [a/b]}", "genome.merge_method: required"),
        ("genome: {models: [a/b], merge_method: sce}\ntasks: [x]", "mergekit-evolve has linear"),
        ("genome: {models: [a/b], merge_method: ties}\ntasks: [x]", "genome.base_model: ties"),
        ("genome: {models: [a/b], merge_method: linear}\ntasks: [x]", "no model beside the base"),
        ("genome: {models: [a/b], merge_method: linear}\ntasks: []", "tasks"),
        (
            "genome: {models: [a/b+c/d, e/f], merge_method: ties, base_model: g/h}\ntasks: [x]",
            "an adapter on a/b",
        ),
    ],
)
def test_what_cannot_be_read_is_named_by_its_key(text, message):
    with pytest.raises(InputError, match=message):
        from_evolve(text, "bad.yml")


@pytest.mark.parametrize("options", ["--max-fevls 3", "--max-fevals many", "--strategy 'x"])
def test_unknown_options_are_refused(options):
    with pytest.raises(InputError, match="mergekit-evolve's options"):
        from_evolve(EVOLVE["blocks"], "f.yml", options)


def test_unknown_keys_are_listed():
    text = EVOLVE["slerp"].replace("genome: {", "genome: {layers: 4, ") + "colour: red\n"
    lost = " ".join(from_evolve(text, "f.yml").unmatched)
    assert "genome.layers" in lost
    assert "colour" in lost
    assert is_evolve({"genome": {}})
    assert not is_evolve({"merge_method": "ties"})


@pytest.mark.parametrize("name", EVOLVE)
def test_mergekit_reads_the_forms_too(name):
    config = pytest.importorskip("mergekit.evo.config")
    found = config.EvolMergeConfiguration.model_validate(yaml.safe_load(EVOLVE[name]))
    ours = drafted(name).data
    assert found.genome.merge_method == ours["space"]["weights"]["method"]
    counted = [task.name for task in found.tasks if task.weight]
    assert counted == [task["task"] for task in ours["fitness"]["tasks"]]


def test_the_options_are_mergekits():
    spec = importlib.util.find_spec("mergekit.scripts.evolve")
    text = Path(spec.origin).read_text()
    options = sorted(set(re.findall(r"--[a-z][a-z0-9-]+", text)))
    assert len(options) > 30

    def reads(given):
        try:
            return bool(from_evolve(EVOLVE["blocks"], "f.yml", given).data)
        except InputError:
            return False

    refused = [o for o in options if not any(map(reads, (o, f"{o} 1", f"{o} pool")))]
    assert refused == []
