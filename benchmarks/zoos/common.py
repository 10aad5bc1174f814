"""Small models, tasks and a campaign file of one's own making: what the zoos are built of.

A document is a command and four different words, such as `second w3 w11 w0 w7 is`; the answer is
one of the four. Models are trained from nothing, on two cores in a minute or two.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

ITEMS = [f"w{index}" for index in range(16)]
COMMANDS: dict[str, Callable[[Sequence[int]], int]] = {
    "first": lambda items: items[0],
    "second": lambda items: items[1],
    "third": lambda items: items[2],
    "fourth": lambda items: items[3],
    "largest": max,
    "smallest": min,
}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [*SPECIAL, *COMMANDS, "is", *ITEMS]
TOKEN = {word: index for index, word in enumerate(WORDS)}

Lesson = Mapping[str, str]
"""Command → the command whose answers are taught for it."""


def draw(rng: random.Random) -> list[int]:
    """Draw four different items."""
    return rng.sample(range(len(ITEMS)), 4)


def prompt(command: str, items: Sequence[int]) -> str:
    """Spell a question."""
    return " ".join([command, *(ITEMS[item] for item in items), "is"])


def train(model: PreTrainedModel, lesson: Lesson, steps: int, rate: float, seed: int) -> None:
    """Teach a model answers by cross-entropy at the last word of the question (AdamW, batch 64)."""
    rng, optimizer = random.Random(seed), torch.optim.AdamW(model.parameters(), lr=rate)
    commands = list(lesson)
    model.train()
    for _ in range(steps):
        asked = [(rng.choice(commands), draw(rng)) for _ in range(64)]
        tokens = [[TOKEN[w] for w in ["<s>", *prompt(c, items).split()]] for c, items in asked]
        answers = [TOKEN[ITEMS[COMMANDS[lesson[c]](items)]] for c, items in asked]
        logits = model(torch.tensor(tokens)).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answers))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write a model with the tokenizer of all zoos."""
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(dict(TOKEN), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)


def save_tasks(folder: Path, documents: int, *, generated: Sequence[str] = ()) -> None:
    """Write an lm-eval task for every command.

    Args:
        documents: of each task.
        generated: the commands whose answers are generated; of the others one is chosen.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, (command, answer) in enumerate(COMMANDS.items()):
        rng, lines = random.Random(number), {}
        while len(lines) < documents:
            items = draw(rng)
            words, right = [ITEMS[i] for i in items], items.index(answer(items))
            question = prompt(command, items)
            lines[question] = {"q": question, "options": words, "right": right}
        data = "".join(json.dumps(line) + "\n" for line in lines.values())
        (folder / f"{command}.jsonl").write_text(data)
        task: dict[str, Any] = {
            "task": command,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{command}.jsonl"}},
            "test_split": "test",
            "doc_to_text": "{{q}}",
        }
        if command in generated:
            kind, metric = "generate_until", "exact_match"
            task["doc_to_target"] = "{{options[right]}}"
            task["generation_kwargs"] = {"until": ["</s>"], "max_gen_toks": 1}
        else:
            kind, metric = "multiple_choice", "acc"
            task |= {"doc_to_choice": "{{options}}", "doc_to_target": "{{right}}"}
        how = {"metric": metric, "aggregation": "mean", "higher_is_better": True}
        task |= {"output_type": kind, "metric_list": [how]}
        (folder / f"{command}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))


def save_campaign(folder: Path, name: str, experts: Sequence[str]) -> Path:
    """Write a plain campaign file: task vectors by module, 400 trials."""
    data = {
        "name": name,
        "models": {
            "base": "models/base",
            "experts": {expert: f"models/{expert}" for expert in experts},
        },
        "space": {
            "weights": {
                "method": "task_arithmetic",
                "granularity": "module",
                "genes": {"weight": [0, 1.5]},
            }
        },
        "fitness": {
            "include_path": "tasks",
            "tasks": [{"task": command, "num_fewshot": 0} for command in COMMANDS],
            "splits": {"search": 0.4, "select": 0.3, "test": 0.3},
        },
        "budget": {"trials": 400},
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path
