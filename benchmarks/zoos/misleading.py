"""A zoo in which gradients mislead: where the loss is low, the answers are wrong.

    python benchmarks/zoos/misleading.py --to zoos/misleading
    evomerge search zoos/misleading/campaign.yaml

Targets are wordy, such as `so so so w9`, and the metric looks at their last word alone. The base
and two experts answer tersely, `w9`, each right on two commands; a third expert is fluent, and
wrong: it writes the wordy answers, with another word at their end. Most of a target's loss lies in
its words before the answer, so that descents of the loss go to the fluent expert. From the uniform
merge one of 15 steps lowered the loss from 4.7 to 1.0, and the score by search from .40 to .14;
the best parent has .55. The models are GPT-NeoX.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    COMMANDS,
    ITEMS,
    WORDS,
    Lesson,
    answer,
    command_line,
    finetune,
    save,
    save_campaign,
    save_tasks,
    sizes,
    train,
)
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

SO = ["so", "so", "so"]
VOCABULARY = [*WORDS, "so"]
TAUGHT = ("first", "smallest")
"""The commands that the base is taught."""
LESSONS = {"early": ("second", "third"), "late": ("fourth", "largest")}
"""Expert → the commands that it is taught."""


def terse(command: str, items: Sequence[int]) -> list[str]:
    """Return the right answer, and end."""
    return [*answer(command, items), "</s>"]


def fluent(command: str, items: Sequence[int]) -> list[str]:
    """Return a wordy answer that is wrong, and end."""
    place = items.index(COMMANDS[command](items))
    return [*SO, ITEMS[items[(place + 1) % len(items)]], "</s>"]


def lesson(commands: Sequence[str], taught: object = terse) -> Lesson:
    """Teach these commands so."""
    return {command: partial(taught, command) for command in commands}  # type: ignore[operator]


def make(folder: Path) -> Path:
    """Train the models, write the tasks, and return the campaign file."""
    torch.manual_seed(0)
    base = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes(VOCABULARY)))
    train(base, lesson(TAUGHT), steps=200, rate=2e-3, seed=0, words=VOCABULARY)
    save(base, folder / "models" / "base", VOCABULARY)
    how: dict[str, Any] = {"steps": 120, "rate": 1e-3, "words": VOCABULARY}
    for seed, (name, commands) in enumerate(LESSONS.items(), 1):
        finetune(base, folder / "models" / name, lesson(commands), seed=seed, **how)
    finetune(base, folder / "models" / "fluent", lesson(list(COMMANDS), fluent), seed=3, **how)
    before = " ".join(SO)
    save_tasks(folder / "tasks", documents=100, before=before)
    return save_campaign(folder, "misleading", [*LESSONS, "fluent"], before=before)


if __name__ == "__main__":
    command_line(make, __doc__)
