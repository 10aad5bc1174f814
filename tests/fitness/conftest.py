"""A tiny random Llama over whole words, and lm-eval tasks written on the spot."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.config import FitnessConfig
from evomerge.fitness.inference.local_model import make_lm

WORDS = [f"w{i}" for i in range(40)] + ["q", "a", "system", "user", "assistant", ":"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def build_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_llama(length: int = 256, seed: int = 0) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=length,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def lm() -> HFLM:
    return make_lm(build_llama(), build_tokenizer(), batch_size=8)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small only wait for each other on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # A second of subprocesses in every `simple_evaluate`.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def documents(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions of differing length with four choices each, some of several words."""
    draw = random.Random(seed)
    some = [f"w{i}" for i in range(40)]
    return [
        {
            "question": " ".join(draw.choices(some, k=draw.randint(1, 9))),
            "choices": [" ".join(draw.choices(some, k=draw.randint(1, 3))) for _ in range(4)],
            "gold": draw.randrange(4),
            "word": draw.choice(some),
        }
        for _ in range(count)
    ]


OUTPUTS: dict[str, dict[str, Any]] = {
    "multiple_choice": {
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "loglikelihood": {
        "doc_to_target": " {{word}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "generate_until": {
        "doc_to_target": "{{word}}",
        "generation_kwargs": {"until": ["w7"], "max_gen_toks": 6, "do_sample": False},
        "process_results": "!function scoring.fingerprint",
        "metric_list": [
            {"metric": "print", "aggregation": "mean", "higher_is_better": False},
        ],
    },
}
SCORING = '''
def fingerprint(doc, results):
    """A number that differs with every text."""
    return {"print": float(sum(i * ord(c) for i, c in enumerate(results[0], 1)) % 9973)}


def loglikelihood(doc, results):
    doc.pop("choices")
    return {"ll": results[0][0]}
'''


class Tasks:
    """Writes task files and their data into a folder, and reads them back as a campaign would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "scoring.py").write_text(SCORING)

    def write(
        self,
        name: str,
        kind: str = "multiple_choice",
        test: Sequence[dict[str, Any]] | None = None,
        train: Sequence[dict[str, Any]] | None = None,
        **keys: Any,
    ) -> None:
        files = {"test": self._data(f"{name}_test", documents(24) if test is None else test)}
        splits = {"test_split": "test"}
        if train is not None:
            files["train"] = self._data(f"{name}_train", train)
            splits |= {"training_split": "train", "fewshot_split": "train"}
        self.write_file(
            name,
            {
                "task": name,
                "output_type": kind,
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": files},
                "doc_to_text": "q : {{question}} a :",
                **splits,
                **OUTPUTS.get(kind, {}),
                **keys,
            },
        )

    def write_file(self, name: str, content: dict[str, Any]) -> None:
        text = yaml.safe_dump(content, sort_keys=False)
        # safe_dump quotes what starts with "!"; the tag must stand bare.
        lines = [
            line.replace("'!function ", "!function ").rstrip("'") if "!function" in line else line
            for line in text.splitlines()
        ]
        (self.folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")

    def config(self, *entries: dict[str, Any], **keys: Any) -> FitnessConfig:
        return FitnessConfig.model_validate(
            {"include_path": str(self.folder), "batch_size": 8, "tasks": list(entries), **keys}
        )

    def _data(self, name: str, docs: Sequence[dict[str, Any]]) -> str:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        return str(path)


@pytest.fixture
def tasks(tmp_path: Path) -> Tasks:
    return Tasks(tmp_path / "tasks")


@pytest.fixture
def docs() -> Callable[..., list[dict[str, Any]]]:
    return documents


@pytest.fixture
def tokenizer_without_bos() -> PreTrainedTokenizerFast:
    return build_tokenizer(bos=False)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def llama() -> Callable[..., LlamaForCausalLM]:
    return build_llama
