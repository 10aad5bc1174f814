"""Scoring a candidate: evomerge against lm-eval on the same resident model, item by item alike.

Run `python benchmarks/scoring.py --threads 2`. A random small Llama and generated documents; both
sides score in turn, in one process, and their scores are compared. Targets, as shares of the other
side's time: 100 four-choice documents at most .3 of `simple_evaluate`; 500 of them behind five
examples at most .3 of `evaluate` (which makes no report on the environment), .1 where the examples
are the same, 200 short answers at most .6 of it. Log-likelihoods are compared to 1e-4. One torch
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
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command `evomerge` sets it; for both sides

import datasets
import torch
import yaml
from lm_eval import evaluate, simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.config import FitnessConfig
from evomerge.fitness.inference.local_model import Local, make_lm
from evomerge.fitness.tasks.lm_eval_quirks import quiet
from evomerge.fitness.tasks.task_set import TaskSet

VOCABULARY = 4000
CHOICES: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
ANSWERS: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_target": "{{choices[gold]}}",
    # A word in ten ends an answer, as the line's end would.
    "generation_kwargs": {"until": ["9 w"], "max_gen_toks": 32, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@dataclass(frozen=True)
class Case:
    """Documents to score, and the time that may be spent on it."""

    name: str
    documents: int
    against: str
    target: float
    choice_words: int = 3
    task: Mapping[str, Any] = field(default_factory=lambda: CHOICES)
    examples: int = 0
    sampler: str = "default"


CASES = [
    Case("4 choices of one token", 100, "simple_evaluate", 0.3, choice_words=1),
    Case("4 choices of three tokens", 100, "simple_evaluate", 0.3),
    Case("5 examples, drawn anew", 500, "evaluate", 0.3, examples=5),
    Case("5 examples, the same for all", 500, "evaluate", 0.1, examples=5, sampler="first_n"),
    Case("short answers", 200, "evaluate", 0.6, task=ANSWERS),
    Case("short answers, 5 examples drawn anew", 200, "evaluate", 0.6, task=ANSWERS, examples=5),
]


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
        max_position_embeddings=1024,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return make_lm(LlamaForCausalLM(config).eval(), tokenizer, batch_size=64)


def write_task(folder: Path, case: Case) -> None:
    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(count))

    def write(split: str, count: int) -> str:
        lines = [
            {
                "question": text(draw.randint(20, 60)),
                "choices": [text(case.choice_words) for _ in range(4)],
                "gold": draw.randrange(4),
            }
            for _ in range(count)
        ]
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    task = {
        "task": "task",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": write("test", case.documents), "train": write("train", 50)}
        },
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": case.sampler},
        "doc_to_text": "{{question}}",
        **case.task,
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))


def timed(clock: Callable[[], float], action: Callable[[], Any]) -> tuple[float, Any]:
    start = clock()
    result = action()
    return clock() - start, result


def compare(case: Case, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        write_task(folder, case)
        lm = build_lm()
        metric = case.task["metric_list"][0]["metric"]
        entry = {"task": "task", "metric": metric, "num_fewshot": case.examples}
        config = FitnessConfig.model_validate({"include_path": name, "tasks": [entry]})
        manager = TaskManager(include_path=name, include_defaults=False)
        build, tasks = timed(clock, lambda: TaskSet(config, Local(lm)))
        wanted = {"task": tasks.items[0].ids}

        def load() -> dict[str, Any]:
            loaded = manager.load(["task"])
            for task in loaded["tasks"].values():
                task.set_config("num_fewshot", case.examples)
                task.set_fewshot_seed(1234)
            return loaded

        def stock() -> Any:
            if case.against == "evaluate":
                return evaluate(lm, load(), bootstrap_iters=0)
            return simple_evaluate(lm, tasks=["task"], task_manager=manager, bootstrap_iters=0)

        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(repeats + 1):
            spent, found = timed(clock, lambda: tasks.score(wanted))
            seconds["ours"].append(spent)
            with quiet(), redirect_stderr(StringIO()):  # lm-eval draws its bars regardless
                spent, results = timed(clock, stock)
            seconds["theirs"].append(spent)
            check(tasks, dict(zip(wanted["task"], found["task"], strict=True)), results, metric)
    # The first round warms up.
    ours, theirs = (statistics.median(values[1:]) for values in seconds.values())
    return {
        "case": f"{case.documents} documents, {case.name}",
        "evomerge": ours,
        case.against: theirs,
        "against": case.against,
        "share": ours / theirs,
        "target": case.target,
        "build": build,
    }


def show(row: dict[str, Any], repeats: int) -> None:
    print(
        f"{row['case']}: evomerge {1e3 * row['evomerge']:.0f} ms, {row['against']} "
        f"{1e3 * row[row['against']]:.0f} ms, ratio {row['share']:.2f} (target {row['target']}); "
        f"the same item by item; requests built once in {1e3 * row['build']:.0f} ms; "
        f"median of {repeats}",
        flush=True,
    )


def check(tasks: TaskSet, ours: Mapping[str, float], results: Any, metric: str) -> None:
    """Scores, and what they are made of: texts, or log-likelihoods to 1e-4."""
    requests = dict(zip(ours, tasks._sources["task"].requests, strict=True))
    for sample in results["samples"]["task"]:
        item = sample["doc_hash"]
        if ours[item] != sample[metric]:
            raise SystemExit(f"scores differ on {item}")
        for mine, theirs in zip(requests[item], sample["resps"], strict=True):
            (one,), (other,) = mine.resps, theirs
            same = one == other if isinstance(one, str) else abs(one[0] - other[0]) < 1e-4
            if not same:
                raise SystemExit(f"answers differ on {item}: {one}, {other}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="processor time, on a busy machine")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cases", default="", help="only those with this in their name")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    chosen = [case for case in CASES if arguments.cases in case.name]
    clock = time.process_time if arguments.cpu else time.perf_counter
    rows = []
    for case in chosen:
        rows.append(compare(case, arguments.repeats, clock))
        if not arguments.json:
            show(rows[-1], arguments.repeats)
    if arguments.json:
        print(json.dumps({"cases": rows}))
    raise SystemExit(0 if all(row["share"] <= row["target"] for row in rows) else 1)


if __name__ == "__main__":
    main()
