"""A zoo of four Llama experts whose answers are generated, three words each.

    python benchmarks/zoos/four_experts.py --to zoos/four_experts
    evomerge search zoos/four_experts/campaign.yaml

The base copies lists; each expert learns one way more to answer, and practises what the base knew
in every second question.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from common import (
    LIST_WORDS,
    LISTS,
    command_line,
    finetune,
    lesson_of,
    save,
    save_campaign,
    save_tasks,
    sizes,
    train,
)
from transformers import LlamaConfig, LlamaForCausalLM

EXPERTS = {"rear": "back", "turned": "turn", "rising": "up", "falling": "down"}
"""Expert → the command that it is taught."""
READ: dict[str, Any] = {"words": LIST_WORDS, "first": ()}
"""What questions are made of, as lm-eval asks them."""


def make(folder: Path) -> Path:
    """Train the models, write the tasks, and return the campaign file."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            **sizes(LIST_WORDS),
            num_key_value_heads=4,
        )
    )
    train(base, lesson_of({"copy": "copy"}), 500, rate=3e-3, seed=0, **READ)
    save(base, folder / "models" / "base", LIST_WORDS)
    for seed, (name, command) in enumerate(EXPERTS.items(), 1):
        lesson = lesson_of({command: command, "copy": "copy"})
        finetune(base, folder / "models" / name, lesson, steps=300, rate=1e-3, seed=seed, **READ)
    save_tasks(folder / "tasks", documents=100, commands=LISTS)
    return save_campaign(folder, "four-experts", list(EXPERTS), commands=LISTS)


if __name__ == "__main__":
    command_line(make, __doc__)
