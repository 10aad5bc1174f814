"""A zoo of a generalist and three specialists, as models are that people finetune: Phi-3.

    python benchmarks/zoos/specialists.py --to zoos/specialists
    evomerge search zoos/specialists/campaign.yaml

The base has seen all six commands, and knows few of them. Each expert was shortly trained on three,
without practising the rest; two of them share two commands. Over all documents the base is right on
.57, the experts on .64, .67 and .71, none of them the best on every task.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import (
    COMMANDS,
    command_line,
    finetune,
    lesson_of,
    save,
    save_campaign,
    save_tasks,
    sizes,
    train,
)
from transformers import Phi3Config, Phi3ForCausalLM

LESSONS = {
    "front": ("first", "second", "third"),
    "back": ("second", "third", "fourth"),
    "sizes": ("first", "largest", "smallest"),
}
"""Expert → the commands that it is taught."""


def make(folder: Path) -> Path:
    """Train the models, write the tasks, and return the campaign file."""
    torch.manual_seed(0)
    base = Phi3ForCausalLM(Phi3Config(**sizes(), num_key_value_heads=2))
    whole = lesson_of(dict(zip(COMMANDS, COMMANDS, strict=True)))
    train(base, whole, steps=60, rate=2e-3, seed=0, first=())
    save(base, folder / "models" / "base")
    for seed, (name, commands) in enumerate(LESSONS.items(), 1):
        lesson = lesson_of(dict(zip(commands, commands, strict=True)))
        place = folder / "models" / name
        finetune(base, place, lesson, steps=40, rate=5e-4, seed=seed, first=())
    save_tasks(folder / "tasks", documents=100)
    return save_campaign(folder, "specialists", list(LESSONS))


if __name__ == "__main__":
    command_line(make, __doc__)
