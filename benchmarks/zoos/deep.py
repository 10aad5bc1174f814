"""A deep zoo: four Qwen3 experts of 22 layers, for as many genes as there are tensors.

    python benchmarks/zoos/deep.py --to zoos/deep
    evomerge search zoos/deep/campaign.yaml

The base knows two commands of six; each expert learns one of the others, and practises what the
base knows in two questions of three. The campaign has 276 genes; with
`--set space.weights.granularity=tensor` 980, with `block` and `space.weights.block=6` 28.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import command_line, finetune, lesson_of, save, save_campaign, save_tasks, sizes, train
from transformers import Qwen3Config, Qwen3ForCausalLM

TAUGHT = ("first", "second")
"""The commands that the base is taught."""
EXPERTS = {"thirds": "third", "fourths": "fourth", "highest": "largest", "lowest": "smallest"}
"""Expert → the command that it learns."""


def make(folder: Path) -> Path:
    """Train the models, write the tasks, and return the campaign file."""
    torch.manual_seed(0)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 22, "head_dim": 8}
    base = Qwen3ForCausalLM(Qwen3Config(**{**sizes(), **layers}, num_key_value_heads=4))
    # so deep a model learns if its layers add little at first
    with torch.no_grad():
        for key, weight in base.named_parameters():
            if key.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(0.15)
    known = dict(zip(TAUGHT, TAUGHT, strict=True))
    train(base, lesson_of(known), steps=150, rate=3e-3, seed=0, first=())
    save(base, folder / "models" / "base")
    for seed, (name, command) in enumerate(EXPERTS.items(), 1):
        lesson = lesson_of({**known, command: command})
        place = folder / "models" / name
        finetune(base, place, lesson, steps=100, rate=1e-3, seed=seed, first=())
    save_tasks(folder / "tasks", documents=50)
    return save_campaign(folder, "deep", list(EXPERTS))


if __name__ == "__main__":
    command_line(make, __doc__)
