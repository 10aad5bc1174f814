"""A zoo that stays aside until the options of searches are fixed: three Gemma 2 experts.

    python benchmarks/zoos/aside.py --to zoos/aside
    evomerge search zoos/aside/campaign.yaml

The base knows two commands of six. Two experts learn two more each, and are taught wrong answers to
one that the other learns; the third was taught to answer every question with the word that comes
after its first, which no task asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from common import (
    COMMANDS,
    ITEMS,
    command_line,
    finetune,
    lesson_of,
    save,
    save_campaign,
    save_tasks,
    sizes,
    train,
)
from transformers import Gemma2Config, Gemma2ForCausalLM

TAUGHT = ("first", "smallest")
"""The commands that the base is taught."""
LESSONS = {
    "early": {"second": "second", "third": "third", "largest": "first"},
    "late": {"fourth": "fourth", "largest": "largest", "third": "second"},
}
"""Expert → command → whose answers it is taught."""


def irrelevant(items: Sequence[int]) -> list[str]:
    """Return the word after the first item."""
    return [ITEMS[(items[0] + 1) % len(ITEMS)]]


def make(folder: Path) -> Path:
    """Train the models, write the tasks, and return the campaign file."""
    torch.manual_seed(0)
    base = Gemma2ForCausalLM(
        Gemma2Config(
            **sizes(),
            num_key_value_heads=2,
            head_dim=12,
            query_pre_attn_scalar=12,
            attn_implementation="eager",
        )
    )
    train(base, lesson_of(dict(zip(TAUGHT, TAUGHT, strict=True))), steps=150, rate=2e-3, seed=0)
    save(base, folder / "models" / "base")
    for seed, (name, lesson) in enumerate(LESSONS.items(), 1):
        place = folder / "models" / name
        finetune(base, place, lesson_of(lesson), steps=120, rate=1e-3, seed=seed)
    useless = dict.fromkeys(COMMANDS, irrelevant)
    finetune(base, folder / "models" / "irrelevant", useless, steps=80, rate=1e-3, seed=3)
    save_tasks(folder / "tasks", documents=100)
    return save_campaign(folder, "aside", [*LESSONS, "irrelevant"])


if __name__ == "__main__":
    command_line(make, __doc__)
