"""A campaign that vLLM can run on a CPU: float32 models whose heads are 32 wide."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import tiny
import yaml

# `make test-vllm` runs these in an environment of its own.
collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """models/, tasks/ and campaign.yaml with a task of choices and one of generation."""
    import torch

    folder = tmp_path_factory.mktemp("vllm")
    wide = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    tiny.save_family(folder / "models", dtype=torch.float32, num_key_value_heads=1, **wide)
    tiny.save_task(folder / "tasks", items=40)
    documents = [json.loads(line) for line in (folder / "tasks" / "pick.jsonl").open()]
    lines = [json.dumps({"q": d["q"], "target": d["options"][0]}) for d in documents]
    (folder / "tasks" / "say.jsonl").write_text("\n".join(lines) + "\n")
    task = tiny.generation_task("say", "{{target}}", tokens=12)
    (folder / "tasks" / "say.yaml").write_text(yaml.safe_dump(task))
    tasks = [
        {"task": "pick", "num_fewshot": 0},
        {"task": "say", "num_fewshot": 0, "metric": "exact_match"},
    ]
    fitness = {**tiny.campaign_data()["fitness"], "tasks": tasks, "engine": {"kind": "vllm"}}
    tiny.save_campaign(
        folder,
        fitness=fitness,
        optimizer={"kind": "cma", "population": 4, "plain": True},
        budget={"trials": 30},
        dtype={"compute": "float32"},
    )
    return folder
