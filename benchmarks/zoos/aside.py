"""A zoo that stays aside until the options of searches are fixed: three Gemma 2 experts.

    python benchmarks/zoos/aside.py --to zoos/aside
    evomerge search zoos/aside/campaign.yaml

The base knows two commands of six. Two experts learn two more each, and are taught wrong answers to
one that the other learns; the third was taught to answer every question with the word that comes
after its first, which no task asks for.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from common import COMMANDS, ITEMS, WORDS, lesson_of, save, save_campaign, save_tasks, train
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
            vocab_size=len(WORDS),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            query_pre_attn_scalar=12,
            max_position_embeddings=32,
            initializer_range=0.05,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            attn_implementation="eager",
        )
    )
    train(base, lesson_of(dict(zip(TAUGHT, TAUGHT, strict=True))), steps=150, rate=2e-3, seed=0)
    save(base, folder / "models" / "base")
    for seed, (name, lesson) in enumerate(LESSONS.items(), 1):
        expert = copy.deepcopy(base)
        train(expert, lesson_of(lesson), steps=120, rate=1e-3, seed=seed)
        save(expert, folder / "models" / name)
    expert = copy.deepcopy(base)
    train(expert, dict.fromkeys(COMMANDS, irrelevant), steps=80, rate=1e-3, seed=3)
    save(expert, folder / "models" / "irrelevant")
    save_tasks(folder / "tasks", documents=100)
    return save_campaign(folder, "aside", [*LESSONS, "irrelevant"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True, help="a new folder")
    print(make(parser.parse_args().to))
