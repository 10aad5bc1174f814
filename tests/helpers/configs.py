"""Campaigns of which only the configs are here."""

from __future__ import annotations

import tiny
import torch
import yaml
from transformers import LlamaConfig, MistralConfig

NAMES = ("base", "math", "lang")


def save_configs(folder, config, tokenizer=True, **sections):
    """A campaign whose models are config files, and a tokenizer for the base."""
    for name in NAMES:
        config.save_pretrained(folder / "models" / name)
    if tokenizer:
        tiny.save_tokenizer(folder / "models" / "base")
    if not (folder / "tasks").exists():
        tiny.save_task(folder / "tasks")
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(tiny.campaign_data(**sections)))
    return path


def small_config(**changes) -> LlamaConfig:
    """Six layers, two heads of keys and values of eight numbers."""
    return tiny.llama_config(num_hidden_layers=6, dtype=torch.bfloat16, **changes)


def seven_billion() -> list:
    """Llama 2's and Mistral's sizes."""
    llama = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        dtype=torch.bfloat16,
    )
    return [llama, MistralConfig(dtype=torch.bfloat16)]
