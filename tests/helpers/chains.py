"""Models whose answers are known: each token alone decides the next one, by the head's rows."""

from __future__ import annotations

import json
import random
from pathlib import Path

import tiny
import torch
import yaml
from transformers import LlamaForCausalLM

END = "</s>"
RIGHT, WRONG = "w1", "w2"
THOUGHT = [f"w{i}" for i in range(20, 40)]
"""Tokens of a long answer before the one that counts."""
KINDS = {"long": "w10", "known": "w11", "hard": "w12"}
"""Kind of question → its last word."""
PLAIN = dict.fromkeys(tiny.WORDS, END) | dict(zip(THOUGHT, [*THOUGHT[1:], RIGHT], strict=True))
ANSWERS = {
    "base": {"w10": "w20", "w11": WRONG, "w12": WRONG},
    "knows": {"w10": "w20", "w11": RIGHT, "w12": WRONG},
    "brief": {"w10": RIGHT, "w11": WRONG, "w12": RIGHT},
}
"""Model → what it says after a question's last word; after w20 it thinks for twenty tokens."""


def save_chains(folder: Path) -> None:
    """Save a base and two experts; their sum of task vectors answers every question briefly."""
    names = {word: i for i, word in enumerate([*tiny.SPECIAL, *tiny.WORDS])}
    for name, answers in ANSWERS.items():
        config = tiny.llama_config(hidden_size=len(names), max_position_embeddings=128)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "norm" not in key:
                    parameter.zero_()
            model.model.embed_tokens.weight.copy_(torch.eye(len(names)))
            for word, following in (PLAIN | answers).items():
                model.lm_head.weight[names[following], names[word]] = 1
        model.save_pretrained(folder / name)
        tiny.save_tokenizer(folder / name)


def save_questions(folder: Path, kinds: dict[str, int], tokens: int, name="think") -> None:
    """Save a generation task of so many questions of each kind; answers of at most `tokens`."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    questions = [
        {"q": " ".join([*draw.choices(tiny.WORDS, k=9), KINDS[kind]]), "word": RIGHT}
        for kind, count in kinds.items()
        for _ in range(count)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    steps = [{"function": "regex", "regex_pattern": r"\b(w[12])\b"}, {"function": "take_first"}]
    task = tiny.generation_task(name, "{{word}}", until="w5", tokens=tokens)
    task["filter_list"] = [{"name": "answer", "filter": steps}]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def save_campaign(folder: Path, kinds: dict[str, int], tokens: int, **fitness) -> Path:
    """Save models, task and a campaign whose every merge answers all questions briefly."""
    save_chains(folder / "models")
    save_questions(folder / "tasks", kinds, tokens)
    experts = {name: f"models/{name}" for name in ("knows", "brief")}
    weights = {"method": "task_arithmetic", "genes": {"weight": [0.8, 1.2]}}
    sections = {
        "models": {"base": "models/base", "experts": experts},
        "space": {"weights": weights},
        "fitness": {
            "include_path": "tasks",
            "tasks": [{"task": "think", "metric": "exact_match"}],
            "splits": {"search": 0.3, "select": 0.2, "test": 0.5},
            "select_top": 1,
            **fitness,
        },
        "optimizer": {"kind": "random", "plain": True},
        "budget": {"trials": 2},
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(tiny.campaign_data(**sections)))
    return path
