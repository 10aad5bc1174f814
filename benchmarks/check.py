"""How near `evomerge check` comes, from config files alone, to what a worker then takes.

Run `python benchmarks/check.py`. Llamas of several sizes, a base and two experts in bf16, TIES, and
four-choice documents. Of each size the estimate is made from the configs and the tokenizer, without
weights (`evomerge.preflight.probe`), and then a worker merges and scores real candidates, each in
a process of its own. Printed are both, and estimate over measurement, for the worker's own memory,
seconds of merging and seconds of scoring. Last, the estimate for three models of 7 B parameters is
set against the largest real run scaled by parameters (outside of the embeddings, for scoring).

`--clock cpu` counts processor seconds instead of wall time: on a machine with other work they are
what a quiet one's wall time would be, for one thread. Exits with 1 when an estimate of memory is
more than a fifth off, or one of seconds by more than a factor of 1.5.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

if "cpu" in sys.argv:  # before anybody takes the time
    time.perf_counter = time.process_time

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.preflight.forecast import foresee
from evomerge.preflight.machine import usage
from evomerge.preflight.probe import probe_here
from evomerge.recipe import BASE
from evomerge.workers.worker import Worker, WorkerSpec

EXPERTS = ("first", "second")
VOCABULARY = 8000
DOCUMENTS = 60
SIZES = {"small": (256, 8), "medium": (512, 12), "large": (768, 12), "largest": (1024, 20)}
SEVEN = (4096, 32)
BARS = {"own": 1.2, "merge": 1.5, "score": 1.5}
"""Quantity → the factor within which its estimate is of the measurement."""


def config_of(hidden: int, layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        max_position_embeddings=2048,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )


def save_tokenizer(folder: Path) -> None:
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>"])}
    words |= {f"w{i}": i for i in range(len(words), VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)


def save_task(folder: Path) -> None:
    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(count))

    folder.mkdir()
    lines = [
        {"q": text(draw.randint(30, 90)), "options": [text(3) for _ in range(4)], "answer": 0}
        for _ in range(DOCUMENTS)
    ]
    (folder / "pick.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {
        "task": "pick",
        "output_type": "multiple_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "pick.jsonl"}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "pick.yaml").write_text(yaml.safe_dump(task))


def save_campaign(folder: Path, weights: bool, hidden: int, layers: int) -> Path:
    config = config_of(hidden, layers)
    if weights:
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).bfloat16()
        start = {name: value.clone() for name, value in model.state_dict().items()}
    for name in (BASE, *EXPERTS):
        place = folder / "models" / name
        config.save_pretrained(place)
        save_tokenizer(place)
        if weights:
            for key, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape) * 0.002 * (name != BASE)
                parameter.data.copy_(start[key] + noise)
            model.save_pretrained(place)
    save_task(folder / "tasks")
    data = {
        "name": "check",
        "models": {"base": "models/base", "experts": {n: f"models/{n}" for n in EXPERTS}},
        "space": {
            "weights": {"method": "ties", "genes": {"weight": [0, 1.5], "density": [0.2, 1]}}
        },
        "fitness": {
            "include_path": "tasks",
            "tasks": [{"task": "pick", "num_fewshot": 0}],
            "splits": {"search": DOCUMENTS - 20, "select": 10, "test": 10},
        },
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def estimate(campaign: Path) -> dict[str, float]:
    """From configs and tokenizer, in this process."""
    setup = prepare(load_campaign(campaign), unread=True)
    assert setup.models.configs_only
    forecast = foresee(setup, campaign.parent / "run", 1, try_one=probe_here)
    assert forecast.probe is not None
    items = sum(setup.sizes("search").values())
    return {
        "own": forecast.memory.own,
        "mapped": forecast.memory.mapped,
        "merge": forecast.probe.merge,
        "score": forecast.item_seconds * items,
        **{name: getattr(forecast.memory, name) for name in ("libraries", "merging", "scoring")},
    }


def real(campaign: Path) -> dict[str, float]:
    """A worker's, in this process, of candidates after the first, which computes statistics."""
    setup = prepare(load_campaign(campaign))
    spec = WorkerSpec(setup.config, setup.items, 1)
    worker = Worker(spec)
    space = setup.space
    recipes = [space.parents()[BASE], space.decode(space.initial), *space.baselines().values()][:3]
    found = [worker.measure(recipe, "search").seconds for recipe in recipes]
    after = usage()
    # Merging once is soon over: of five times the median, a few items scored each time.
    few = {task: ids[:2] for task, ids in setup.items["search"].items()}
    again = [worker.measure(recipes[1 + n % 2], "search", few).seconds for n in range(5)]
    return {
        "own": after.peak - after.mapped,
        "mapped": after.mapped,
        "merge": statistics.median(one["materialize"] for one in again),
        "score": min(one["score"] for one in found),
    }


def in_process(what: str, campaign: Path, clock: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--clock", clock, "--child", what, str(campaign)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def parameters(hidden: int, layers: int, embeddings: bool) -> int:
    config = config_of(hidden, layers)
    head = hidden // config.num_attention_heads
    attention = 2 * hidden * hidden + 2 * hidden * head * config.num_key_value_heads
    layer = attention + 3 * hidden * config.intermediate_size + 2 * hidden
    return layers * layer + hidden + embeddings * 2 * VOCABULARY * hidden


def compare(name: str, clock: str, folder: Path) -> dict[str, Any]:
    size = SIZES[name]
    with_weights = save_campaign(folder / "real", True, *size)
    without = save_campaign(folder / "config", False, *size)
    ours, theirs = in_process("estimate", without, clock), in_process("real", with_weights, clock)
    shutil.rmtree(folder / "real")
    return {"size": name, "parameters": parameters(*size, True), "estimate": ours, "real": theirs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--seven", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        what, campaign = arguments.child
        print(json.dumps({"estimate": estimate, "real": real}[what](Path(campaign))))
        return 0
    rows, worst = [], dict.fromkeys(BARS, 1.0)
    for name in arguments.sizes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compare(name, arguments.clock, Path(folder)))
        row = rows[-1]
        print(f"{name}, {row['parameters'] / 1e6:.0f} M parameters", flush=True)
        for quantity in BARS:
            ours, theirs = row["estimate"][quantity], row["real"][quantity]
            worst[quantity] = max(worst[quantity], ours / theirs, theirs / ours)
            unit, scale = ("MB", 1e6) if quantity == "own" else ("s", 1)
            print(
                f"  {quantity:6} estimated {ours / scale:8.2f} {unit}, measured "
                f"{theirs / scale:8.2f} {unit}, ratio {ours / theirs:.2f}",
                flush=True,
            )
    if arguments.seven:
        largest = arguments.sizes.split(",")[-1]
        with tempfile.TemporaryDirectory() as folder:
            path = save_campaign(Path(folder) / "seven", False, *SEVEN)
            ours = in_process("estimate", path, arguments.clock)
        print(f"three models of {parameters(*SEVEN, True) / 1e9:.1f} B parameters")
        for quantity, embeddings in (("merge", True), ("score", False)):
            more = parameters(*SEVEN, embeddings) / parameters(*SIZES[largest], embeddings)
            scaled = rows[-1]["real"][quantity] * more
            ratio = ours[quantity] / scaled
            worst[quantity] = max(worst[quantity], ratio, 1 / ratio)
            print(
                f"  {quantity:6} estimated {ours[quantity]:8.1f} s, {largest} scaled {scaled:8.1f} "
                f"s, ratio {ratio:.2f}"
            )
        rows.append({"size": "seven", "estimate": ours})
    if arguments.json:
        print(json.dumps(rows))
    for quantity, factor in worst.items():
        print(f"{quantity} at most by a factor of {factor:.2f} off (bar: {BARS[quantity]:g})")
    return int(any(factor > BARS[quantity] for quantity, factor in worst.items()))


if __name__ == "__main__":
    raise SystemExit(main())
