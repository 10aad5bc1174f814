"""A campaign small enough for tests: random two-layer Llamas, words for tokens, one local task."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = [f"w{i}" for i in range(60)]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def save_tokenizer(folder: Path) -> None:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)


def llama_config(**changes) -> LlamaConfig:
    settings = {
        "vocab_size": len(WORDS) + len(SPECIAL),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**{**settings, **changes})


def save_family(
    folder: Path, experts=("math", "lang"), dtype=torch.float16, spread=0.3, **changes
) -> dict[str, Path]:
    """A base and experts that are the base plus noise; returns name → folder."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(llama_config(**changes)).to(dtype)
    paths = {}
    for seed, name in enumerate(["base", *experts]):
        model = LlamaForCausalLM(llama_config(**changes)).to(dtype)
        model.load_state_dict(base.state_dict())
        model.tie_weights()
        if name != "base":
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_((noise * spread * parameter.float().std().clamp(0.02)).to(dtype))
        paths[name] = folder / name
        model.save_pretrained(paths[name])
        save_tokenizer(paths[name])
    return paths


def save_adapter(base: Path, folder: Path, seed=1, **settings) -> Path:
    """A LoRA adapter on a saved base, with random weights."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    config = LoraConfig(task_type="CAUSAL_LM", **{"target_modules": "all-linear", **settings})
    tuned = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    tuned.save_pretrained(folder)
    return folder


def save_task(folder: Path, name="pick", items=60, task_seed=0) -> None:
    """A four-choice task whose answers mean nothing: scores lie near chance and vary by merge."""
    generator = torch.Generator().manual_seed(task_seed)

    def words(count):
        return [WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator)]

    folder.mkdir(parents=True, exist_ok=True)
    documents = [
        {"q": " ".join(words(5)), "options": words(4), "answer": int(i % 4)} for i in range(items)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def generation_task(name: str, target: str, data: str | None = None, until="w5", tokens=8) -> dict:
    """A task whose answers are generated, scored by exact match; `data`: the file of documents."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": data or f"{name}.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": target,
        "generation_kwargs": {"until": [until], "max_gen_toks": tokens},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def campaign_data(**sections) -> dict:
    """A campaign file's data, relative to the folder that holds `models/` and `tasks/`."""
    data = {
        "name": "tiny",
        "models": {
            "base": "models/base",
            "experts": {"math": "models/math", "lang": "models/lang"},
        },
        "space": {"weights": {"method": "task_arithmetic", "genes": {"weight": [0, 1.5]}}},
        "fitness": {
            "include_path": "tasks",
            "tasks": [{"task": "pick", "num_fewshot": 0}],
            "splits": {"search": 0.5, "select": 0.2, "test": 0.3},
            "select_top": 3,
        },
        "optimizer": {"kind": "cma", "population": 4},
        "budget": {"trials": 12},
        "workers": {"isolated": False},  # a second process would import everything again
    }
    data.update(sections)
    return data


def save_campaign(folder: Path, **sections) -> Path:
    """Models, task and campaign file in `folder`; returns the file."""
    if not (folder / "models").exists():
        save_family(folder / "models")
        save_task(folder / "tasks")
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(campaign_data(**sections)))
    return path
