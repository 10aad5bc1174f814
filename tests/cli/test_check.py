"""`evomerge check`, and what it and `search` refuse before any work."""

from __future__ import annotations

import pytest
import torch
import yaml
from command_line import evomerge
from safetensors.torch import load_file, save_file


def test_check_counts_items_and_genes(done):
    text = evomerge("check", done / "campaign.yaml", "--no-measure").stdout
    assert "LlamaForCausalLM, 2 layers" in text
    assert "10 genes" in text
    assert "mapped from their files, on the CPU" in text
    assert "pick" in text


def test_overrides_reach_the_campaign_and_misspelt_ones_are_refused(done):
    quick = ["check", done / "campaign.yaml", "--no-measure"]
    text = evomerge(*quick, "--set", "space.weights.method=ties").stdout
    assert "ties, 10 genes" in text
    check = ["check", done / "campaign.yaml", "--set"]
    assert "budgt: unknown key" in evomerge(*check, "budgt.trials=3", code=2).stderr
    assert "key.path=value" in evomerge(*check, "budget", code=2).stderr
    assert "not a section" in evomerge(*check, "name.first=x", code=2).stderr


def edit(folder, change):
    path = folder / "campaign.yaml"
    data = yaml.safe_load(path.read_text())
    change(data)
    path.write_text(yaml.safe_dump(data))


def weights(data):
    return data["space"]["weights"]


def unknown_key(folder):
    edit(folder, lambda d: weights(d).update(granularty="layer"))


def unknown_task(folder):
    edit(folder, lambda d: d["fitness"]["tasks"][0].update(task="pik"))


def unknown_metric(folder):
    edit(folder, lambda d: d["fitness"]["tasks"][0].update(metric="accuracy"))


def splits_smaller_than_an_item(folder):
    edit(
        folder,
        lambda d: d["fitness"].update(splits={"search": 0.98, "select": 0.01, "test": 0.01}),
    )


def expert_equal_to_the_base(folder):
    edit(folder, lambda d: d["models"]["experts"].update(math="models/base"))


def missing_folder(folder):
    edit(folder, lambda d: d["models"]["experts"].update(math="./models/maths"))


def missing_weights(folder):
    (folder / "models" / "math" / "model.safetensors").unlink()


def corrupt_shard(folder):
    path = folder / "models" / "math" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def wrong_shape(folder):
    path = folder / "models" / "math" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(47, 32, dtype=torch.float16)
    save_file(tensors, path, metadata={"format": "pt"})


def not_yaml(folder):
    (folder / "campaign.yaml").write_text("name: [")


def unknown_optimizer(folder):
    edit(folder, lambda d: d.update(optimizer={"kind": "cmaes"}))


def unknown_objective(folder):
    edit(folder, lambda d: d["fitness"].update(objective="meen"))


BAD = [
    (unknown_key, "space.weights.granularty: unknown key; did you mean 'granularity'?"),
    (unknown_task, "'pik'"),
    (unknown_metric, "'accuracy'"),
    (splits_smaller_than_an_item, "would be empty: 0.01 of the 60 items"),
    (expert_equal_to_the_base, "models.experts.math: equal to the base"),
    (missing_folder, "maths"),
    (missing_weights, "models.experts.math"),
    (corrupt_shard, "model.safetensors"),
    (wrong_shape, "model.layers.0.mlp.up_proj.weight has shape [47, 32]"),
    (not_yaml, "campaign.yaml: not valid YAML"),
    (unknown_optimizer, "optimizer.kind: no optimizer is called 'cmaes'; did you mean 'cma'?"),
    (unknown_objective, "fitness.objective: no objective is called 'meen'"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
@pytest.mark.parametrize("command", ["check", "search"])
def test_bad_input_is_one_clear_message_before_any_work(tiny_folder, command, spoil, message):
    spoil(tiny_folder)
    extra = ["--out", tiny_folder / "run"] if command == "search" else []
    result = evomerge(command, tiny_folder / "campaign.yaml", *extra, code=2)
    assert message in result.stderr.replace("\n", "")
    assert result.stdout == ""
    assert not (tiny_folder / "run").exists()
