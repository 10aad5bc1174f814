"""A zoo made when the options of searches were fixed: three OLMo 2 experts that agree.

    python benchmarks/zoos/agreeing.py --to zoos/agreeing
    evomerge search zoos/agreeing/campaign.yaml

The base knows one command of six, and every expert learns two more and practises what the base
knew; one of the six is taught to two of them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import command_line, finetune, lesson_of, save, save_campaign, save_tasks, sizes, train
from transformers import Olmo2Config, Olmo2ForCausalLM

TAUGHT = ("first",)
"""The commands that the base is taught."""
LESSONS = {
    "early": ("first", "second", "third"),
    "late": ("first", "fourth", "third"),
    "sizes": ("first", "largest", "smallest"),
}
"""Expert → the commands that it is taught."""


def make(folder: Path) -> Path:
    """Train the models, write the tasks, and return the campaign file."""
    torch.manual_seed(0)
    base = Olmo2ForCausalLM(Olmo2Config(**sizes(), num_key_value_heads=4))
    train(base, lesson_of(dict(zip(TAUGHT, TAUGHT, strict=True))), steps=150, rate=2e-3, seed=0)
    save(base, folder / "models" / "base")
    for seed, (name, commands) in enumerate(LESSONS.items(), 1):
        lesson = lesson_of(dict(zip(commands, commands, strict=True)))
        finetune(base, folder / "models" / name, lesson, steps=120, rate=1e-3, seed=seed)
    save_tasks(folder / "tasks", documents=100)
    return save_campaign(folder, "agreeing", list(LESSONS))


if __name__ == "__main__":
    command_line(make, __doc__)
