"""What the campaigns name on the hub, stood in for: tiny random models, invented data sets."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "vocab_size": 72,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MISTRAL = {"num_hidden_layers": 32, "num_key_value_heads": 2, "max_position_embeddings": 32768}
CONFIGS: dict[str, Any] = {
    "mistralai/Mistral-7B-v0.1": MistralConfig(**SIZES, **MISTRAL, sliding_window=4096),
    "mistralai/Mistral-7B-Instruct-v0.2": MistralConfig(**SIZES, **MISTRAL, sliding_window=None),
    "meta-llama/Llama-3.1-8B": LlamaConfig(
        **SIZES,
        num_hidden_layers=32,
        num_key_value_heads=2,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "meta-llama/Llama-3.2-3B-Instruct": LlamaConfig(
        **SIZES,
        num_hidden_layers=28,
        num_key_value_heads=2,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
    ),
    "WizardLMTeam/WizardMath-7B-V1.0": LlamaConfig(
        **SIZES, num_hidden_layers=32, num_key_value_heads=4, max_position_embeddings=4096
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": Qwen2Config(
        **SIZES,
        num_hidden_layers=28,
        num_key_value_heads=2,
        max_position_embeddings=131072,
        use_sliding_window=False,
        tie_word_embeddings=False,
    ),
}
"""Base models by hub name: the real architecture, depth and limits, narrow layers."""

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|> ' + m['role'] + ' ' + m['content'] + ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def save_model(folder: Path, base: str, seed: int) -> Path:
    """A random model of a base's architecture, with a tokenizer that knows a few words."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[base], dtype=torch.bfloat16)
    model.save_pretrained(folder)
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = [f"{i}" for i in range(60)] + ["Assistant:", "Human:", "です", "は"]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    saved.chat_template = TEMPLATE
    saved.save_pretrained(folder)
    return folder


def _words(draw: random.Random, count: int) -> str:
    return " ".join(str(draw.randrange(60)) for _ in range(count))


def _pair(draw: random.Random) -> dict[str, Any]:
    prompt = f"\n\nHuman: {_words(draw, 5)}\n\nAssistant: {_words(draw, 3)}\n\nHuman: why?"
    better, worse = (f"{prompt}\n\nAssistant: {_words(draw, 4)}" for _ in range(2))
    return {"chosen": better, "rejected": worse}


def _sum(draw: random.Random) -> dict[str, Any]:
    a, b = draw.randrange(30), draw.randrange(30)
    return {"question": f"{a} と {b} は {_words(draw, 3)}", "answer_number": a + b}


def _multilingual(draw: random.Random) -> dict[str, Any]:
    options = {f"option_{letter}": _words(draw, 2) for letter in "abcd"}
    return {
        "id": _words(draw, 2),
        "instruction": _words(draw, 5),
        **options,
        "option_e": None,
        "answer": draw.choice("ABCD"),
    }


def _ending(draw: random.Random) -> dict[str, Any]:
    return {
        "activity_label": _words(draw, 1),
        "ctx_a": _words(draw, 3),
        "ctx_b": _words(draw, 2),
        "endings": [_words(draw, 2) for _ in range(4)],
        "label": str(draw.randrange(4)),
    }


Row = Callable[[random.Random], dict[str, Any]]
ROWS: dict[str, tuple[Mapping[str, int], Row]] = {
    "SakanaAI/gsm8k-ja-test_250-1319": ({"test": 1069}, _sum),
    "juletxara/mgsm": (
        {"train": 8, "test": 250},
        lambda draw: {
            **_sum(draw),
            "answer": f"ステップごとの答え：{_words(draw, 4)} 答えは7です。",
            "equation_solution": "",
        },
    ),
    "openai/gsm8k": (
        {"train": 1200, "test": 1319},
        lambda draw: {"question": _words(draw, 6), "answer": f"{_words(draw, 3)} #### 7"},
    ),
    "HuggingFaceH4/MATH-500": (
        {"test": 500},
        lambda draw: {
            "problem": _words(draw, 6),
            "solution": f"{_words(draw, 3)} \\boxed{{7}}",
            "answer": "7",
            "subject": "Algebra",
            "level": 1,
            "unique_id": _words(draw, 2),
        },
    ),
    # of these three there are more, which nothing here looks at
    "alexandrainst/m_mmlu": ({"train": 5, "test": 250}, _multilingual),
    "alexandrainst/m_arc": ({"train": 5, "validation": 5, "test": 250}, _multilingual),
    "alexandrainst/m_hellaswag": ({"val": 250}, _ending),
    "Anthropic/hh-rlhf": ({"train": 8, "test": 2312}, _pair),
    "truthfulqa/truthful_qa": (
        {"validation": 817},
        lambda draw: {
            "question": _words(draw, 5),
            "mc1_targets": {"choices": [_words(draw, 2), _words(draw, 2)], "labels": [1, 0]},
            "mc2_targets": {
                "choices": [_words(draw, 2), _words(draw, 3), _words(draw, 2)],
                "labels": [1, 1, 0],
            },
        },
    ),
}
"""Data sets by hub name: how many documents each split has, and one document by their columns."""


def load_dataset(path: str, name: str | None = None, **_: Any) -> datasets.DatasetDict:
    """What `datasets.load_dataset` would give: invented documents of the data set's own form."""
    splits, row = ROWS[path]
    draw = random.Random(f"{path} {name}")
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list([row(draw) for _ in range(count)])
            for split, count in splits.items()
        }
    )
