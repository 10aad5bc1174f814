"""Scoring a candidate on 100 four-choice documents: evomerge against `lm_eval.simple_evaluate`.

Run `python benchmarks/scoring.py`. A random small Llama and generated documents; both sides score
the same resident model, in turn, in one process. Target: at most .6 of simple_evaluate's time with
the same scores. `evaluate()` alone (no report on the environment) is shown beside it. One torch
thread by default, so that other work on the machine disturbs both sides alike.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
import yaml
from lm_eval import evaluate, simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.config import FitnessConfig
from evomerge.fitness.engine import make_lm
from evomerge.fitness.surroundings import quiet
from evomerge.fitness.tasks import TaskSet

VOCABULARY = 4000
DOCUMENTS = 100
TARGET = 0.6


def build_lm() -> HFLM:
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>"])}
    words |= {f"w{i}": i for i in range(len(words), VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    return make_lm(LlamaForCausalLM(config).eval(), tokenizer, batch_size=64)


def write_task(folder: Path, choice_words: int) -> None:
    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(count))

    lines = [
        {
            "question": text(draw.randint(20, 60)),
            "choices": [text(choice_words) for _ in range(4)],
            "gold": draw.randrange(4),
        }
        for _ in range(DOCUMENTS)
    ]
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {
        "task": "choose",
        "output_type": "multiple_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "choose.yaml").write_text(yaml.safe_dump(task))


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def compare(choice_words: int, repeats: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        write_task(folder, choice_words)
        lm = build_lm()
        config = FitnessConfig.model_validate(
            {"include_path": name, "tasks": [{"task": "choose"}], "batch_size": 64}
        )
        manager = TaskManager(include_path=name, include_defaults=False)
        build, tasks = timed(lambda: TaskSet(config, lm))
        wanted = {items.task: items.ids for items in tasks.items}
        stock: dict[str, Callable[[], Any]] = {
            "simple_evaluate": lambda: simple_evaluate(
                lm, tasks=["choose"], task_manager=manager, bootstrap_iters=0
            ),
            "evaluate": lambda: evaluate(lm, manager.load(["choose"]), bootstrap_iters=0),
        }
        seconds: dict[str, list[float]] = {"evomerge": [], **{key: [] for key in stock}}
        for _ in range(repeats + 1):
            spent, found = timed(lambda: tasks.score(wanted))
            seconds["evomerge"].append(spent)
            for key, run in stock.items():
                with quiet():
                    spent, results = timed(run)
                seconds[key].append(spent)
                expected = {s["doc_hash"]: s["acc"] for s in results["samples"]["choose"]}
                equal = dict(zip(wanted["choose"], found["choose"], strict=True)) == expected
                if not equal:
                    raise SystemExit(f"scores differ from {key}'s")
    # The first round warms up.
    median = {key: statistics.median(values[1:]) for key, values in seconds.items()}
    ratio = median["evomerge"] / median["simple_evaluate"]
    print(
        f"{DOCUMENTS} documents, 4 choices of {choice_words} token(s): "
        f"evomerge {1e3 * median['evomerge']:.0f} ms, "
        f"simple_evaluate {1e3 * median['simple_evaluate']:.0f} ms, ratio {ratio:.2f} "
        f"(target {TARGET}); evaluate() {1e3 * median['evaluate']:.0f} ms, ratio "
        f"{median['evomerge'] / median['evaluate']:.2f}; scores equal; "
        f"requests built once in {1e3 * build:.0f} ms; median of {repeats}"
    )
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    ratios = [compare(choice_words, arguments.repeats) for choice_words in (1, 3)]
    raise SystemExit(0 if max(ratios) <= TARGET else 1)


if __name__ == "__main__":
    main()
