"""Tasks whose right answers are a model's own, so that a loss leads to that model."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def choose_as(folder, **models):
    """Write into the task's documents, by field, which option a model thinks likeliest."""
    place = folder / "tasks" / "pick.jsonl"
    documents = [json.loads(line) for line in place.read_text().splitlines()]
    for field, name in models.items():
        model = AutoModelForCausalLM.from_pretrained(folder / "models" / name).float()
        tokenizer = AutoTokenizer.from_pretrained(folder / "models" / name)
        for document in documents:
            question = torch.tensor([tokenizer.encode(document["q"], add_special_tokens=False)])
            options = tokenizer.convert_tokens_to_ids(document["options"])
            document[field] = int(model(question).logits[0, -1, options].argmax())
    place.write_text("".join(json.dumps(document) + "\n" for document in documents))
