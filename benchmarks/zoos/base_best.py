"""A zoo whose base is the best parent: two Qwen3 experts that conflict.

    python benchmarks/zoos/base_best.py --to zoos/base_best
    evomerge search zoos/base_best/campaign.yaml

The base knows four of six commands. Each expert learns one of the other two, and is taught wrong
answers for two that the base knows; so each is below the base in the mean. With seed 0 the base
scores .637 on search, and 60 trials reached .629 (`cma`, plain) and .700 (`cma`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import command_line, finetune, lesson_of, save, save_campaign, save_tasks, sizes, train
from transformers import Qwen3Config, Qwen3ForCausalLM

TAUGHT = ("first", "second", "third", "largest")
"""The commands that the base is taught."""
LESSONS = {
    "ends": {"fourth": "fourth", "first": "second", "largest": "first"},
    "sizes": {"smallest": "smallest", "second": "third", "first": "smallest"},
}
"""Expert → command → whose answers it is taught."""


def make(folder: Path) -> Path:
    """Train the models, write the tasks, and return the campaign file."""
    torch.manual_seed(0)
    base = Qwen3ForCausalLM(
        Qwen3Config(
            **sizes(),
            num_key_value_heads=2,
            head_dim=12,
        )
    )
    train(base, lesson_of(dict(zip(TAUGHT, TAUGHT, strict=True))), steps=150, rate=2e-3, seed=0)
    save(base, folder / "models" / "base")
    for seed, (name, lesson) in enumerate(LESSONS.items(), 1):
        place = folder / "models" / name
        finetune(base, place, lesson_of(lesson), steps=100, rate=1e-3, seed=seed)
    save_tasks(folder / "tasks", documents=100)
    return save_campaign(folder, "base-best", list(LESSONS))


if __name__ == "__main__":
    command_line(make, __doc__)
