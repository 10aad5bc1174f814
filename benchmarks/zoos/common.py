"""Small models, tasks and a campaign file of one's own making: what the zoos are built of.

A document is a command and four different words, such as `second w3 w11 w0 w7 is`; the answer is
one of the four, or, to the commands of `LISTS`, three of them in some order. Models are trained
from nothing, on two cores in a minute or two.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
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
LISTS: dict[str, Callable[[Sequence[int]], list[int]]] = {
    "copy": lambda items: list(items[:3]),
    "back": lambda items: list(items[:0:-1]),
    "turn": lambda items: [items[1], items[2], items[0]],
    "up": lambda items: sorted(items)[:3],
    "down": lambda items: sorted(items, reverse=True)[:3],
}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [*SPECIAL, *COMMANDS, "is", *ITEMS]
LIST_WORDS = [*SPECIAL, *LISTS, "is", *ITEMS]

Lesson = Mapping[str, Callable[[Sequence[int]], list[str]]]
"""Command → the words that are taught as its answer; of all commands as many."""


def draw(rng: random.Random) -> list[int]:
    """Draw four different items."""
    return rng.sample(range(len(ITEMS)), 4)


def prompt(command: str, items: Sequence[int]) -> str:
    """Spell a question."""
    return " ".join([command, *(ITEMS[item] for item in items), "is"])


def answer(command: str, items: Sequence[int]) -> list[str]:
    """Return the words of the right answer."""
    right = COMMANDS[command](items) if command in COMMANDS else LISTS[command](items)
    return [ITEMS[item] for item in ([right] if isinstance(right, int) else right)]


def lesson_of(taught: Mapping[str, str]) -> Lesson:
    """Make a lesson of command → the command whose answers are taught for it."""
    return {command: partial(answer, of) for command, of in taught.items()}


def train(
    model: PreTrainedModel,
    lesson: Lesson,
    steps: int,
    rate: float,
    seed: int,
    words: Sequence[str] = WORDS,
    first: Sequence[str] = ("<s>",),
) -> None:
    """Teach a model answers by cross-entropy at the words of the answer (AdamW, batch 64).

    Args:
        model: is changed in place.
        lesson: what is taught.
        steps: of AdamW.
        rate: the learning rate.
        seed: of the questions.
        words: the vocabulary.
        first: words before the question; lm-eval's requests have none.
    """
    token = {word: index for index, word in enumerate(words)}
    rng, optimizer = random.Random(seed), torch.optim.AdamW(model.parameters(), lr=rate)
    commands = list(lesson)
    model.train()
    for _ in range(steps):
        asked = [(rng.choice(commands), draw(rng)) for _ in range(64)]
        answers = [lesson[command](items) for command, items in asked]
        read = [
            [*first, *prompt(command, items).split(), *taught[:-1]]
            for (command, items), taught in zip(asked, answers, strict=True)
        ]
        logits = model(torch.tensor([[token[word] for word in row] for row in read])).logits
        logits = logits[:, -len(answers[0]) :].flatten(0, 1)
        targets = torch.tensor([token[word] for taught in answers for word in taught])
        loss = torch.nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def sizes(words: Sequence[str] = WORDS) -> dict[str, Any]:
    """Return what the configs of all zoos have in common, for a vocabulary."""
    return {
        "vocab_size": len(words),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "initializer_range": 0.05,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def finetune(base: PreTrainedModel, folder: Path, lesson: Lesson, **how: Any) -> None:
    """Teach a copy of the base and write it; `how`: the other arguments of `train`."""
    expert = copy.deepcopy(base)
    train(expert, lesson, **how)
    save(expert, folder, how.get("words", WORDS))


def save(model: PreTrainedModel, folder: Path, words: Sequence[str] = WORDS) -> None:
    """Write a model with the tokenizer of its vocabulary."""
    model.save_pretrained(folder)
    token = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(token, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)


def save_tasks(
    folder: Path, documents: int, commands: Iterable[str] = COMMANDS, before: str = ""
) -> None:
    """Write an lm-eval task for every command.

    One word of four is chosen; an answer of several is generated, and so is every answer where
    words stand before it.

    Args:
        folder: of the tasks' files.
        documents: of each task.
        commands: of `COMMANDS` or `LISTS`.
        before: words that begin every target; the metric takes them out of targets and answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, command in enumerate(commands):
        rng, lines = random.Random(number), {}
        while len(lines) < documents:
            items = draw(rng)
            options, right = [ITEMS[i] for i in items], answer(command, items)
            question = prompt(command, items)
            chosen = {"options": options, "right": options.index(right[0])}
            written = {"target": " ".join([*before.split(), *right])}
            lines[question] = {
                "q": question,
                **(written if is_written(command, before) else chosen),
            }
        data = "".join(json.dumps(line) + "\n" for line in lines.values())
        (folder / f"{command}.jsonl").write_text(data)
        metric: dict[str, Any] = {"aggregation": "mean", "higher_is_better": True}
        task: dict[str, Any] = {
            "task": command,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{command}.jsonl"}},
            "test_split": "test",
            "doc_to_text": "{{q}}",
            "metric_list": [metric],
        }
        if is_written(command, before):
            most = len(before.split()) + len(right)
            metric["metric"], task["output_type"] = "exact_match", "generate_until"
            task["doc_to_target"] = "{{target}}"
            task["generation_kwargs"] = {"until": ["</s>"], "max_gen_toks": most}
            if before:
                metric["regexes_to_ignore"] = [f"({'|'.join(set(before.split()))}) *"]
        else:
            metric["metric"], task["output_type"] = "acc", "multiple_choice"
            task |= {"doc_to_choice": "{{options}}", "doc_to_target": "{{right}}"}
        (folder / f"{command}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))


def is_written(command: str, before: str = "") -> bool:
    """Tell whether a command's answers are generated."""
    return command in LISTS or bool(before)


def save_campaign(
    folder: Path,
    name: str,
    experts: Sequence[str],
    commands: Iterable[str] = COMMANDS,
    before: str = "",
) -> Path:
    """Write a plain campaign file: task vectors by module, 400 trials."""
    tasks = [
        {"task": c, "metric": "exact_match" if is_written(c, before) else "acc", "num_fewshot": 0}
        for c in commands
    ]
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
            "tasks": tasks,
            "splits": {"search": 0.4, "select": 0.3, "test": 0.3},
        },
        "budget": {"trials": 400},
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def command_line(make: Callable[[Path], Path], about: str | None) -> None:
    """Make a zoo in the folder that the command line names, and print its campaign file."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--to", type=Path, required=True, help="a new folder")
    print(make(parser.parse_args().to))
