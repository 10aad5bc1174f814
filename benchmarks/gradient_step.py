"""A gradient step of a worker against scoring the same items: time, and peak memory.

Run `python benchmarks/gradient_step.py`. Llamas of `--parameters` (250M) with random weights in
bfloat16, a base and two experts, task vectors by module, computed in float32 as on any CPU; a batch
of `--documents` (24) documents of four choices, with `--examples` (0) before each. In one process
scoring and steps take turns, `--repeats` (2) times after one that warms up; then each runs in a
process of its own, whose peak memory is the most that it had of its own, imports and model
included and mapped files left out. Prints both ratios: the aim is 3.5 and 1.6.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from calibrate import own_memory, save

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WAYS = ("scoring", "a step")


def make(folder: Path, parameters: float, documents: int, examples: int) -> None:
    """Write the models, the task and the campaign file."""
    import torch
    import yaml
    from safetensors.torch import load_file, save_file
    from scoring import Case, write_task

    # 1. the base, and experts a little away from it
    save(folder, parameters, texts=1, tokens=1024)
    weights = load_file(folder / "model" / "model.safetensors")
    for seed, name in enumerate(("model", "one", "two")):
        random = torch.Generator().manual_seed(seed)
        place = folder / name
        place.mkdir(exist_ok=True)
        for file in (folder / "model").glob("*.json"):
            (place / file.name).write_bytes(file.read_bytes())
        moved = {
            key: (value + seed * 0.002 * torch.randn(value.shape, generator=random)).bfloat16()
            for key, value in weights.items()
        }
        save_file(moved, place / "model.safetensors", {"format": "pt"})
    # 2. the task: a fifth is for the other splits
    (folder / "tasks").mkdir()
    write_task(folder / "tasks", Case("", documents * 5 // 4 + 4, "", 0, examples=examples))
    # 3. the campaign
    data = {
        "name": "gradient-step",
        "models": {"base": "model", "experts": {"one": "one", "two": "two"}},
        "space": {
            "weights": {
                "method": "task_arithmetic",
                "granularity": "module",
                "genes": {"weight": [0, 1.5]},
            }
        },
        "fitness": {
            "include_path": "tasks",
            "tasks": [{"task": "task", "metric": "acc", "num_fewshot": examples}],
            "splits": {"search": 0.8, "select": 0.1, "test": 0.1},
        },
    }
    (folder / "campaign.yaml").write_text(yaml.safe_dump(data))


def measure(folder: Path, ways: list[str], documents: int, repeats: int, threads: int) -> None:
    """Do each of the ways in turn, and print CPU seconds of each, and the peak in bytes."""
    from evomerge.campaign.setup import prepare
    from evomerge.config import load_campaign
    from evomerge.workers.worker import Worker, WorkerSpec

    # 1. watch this process's own memory
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    # 2. a worker, and the items
    setup = prepare(load_campaign(folder / "campaign.yaml"))
    worker = Worker(WorkerSpec(setup.config, setup.items, threads))
    recipe = setup.space.decode(setup.space.initial)
    items = {"task": setup.items["search"]["task"][:documents]}
    # 3. in turn; the first time warms up
    found: dict[str, list[float]] = {way: [] for way in ways}
    facts: dict[str, Any] = {}
    for _ in range(repeats + 1):
        for way in ways:
            worker.losses(recipe, {"task": items["task"][:1]})  # the recipe is in the model
            begun = os.times()
            if way == "scoring":
                worker.measure(recipe, "search", items)
            else:
                facts = dict(worker.gradient(recipe, items).facts)
            ended = os.times()
            found[way].append(ended.user + ended.system - begun.user - begun.system)
    done.set()
    watcher.join()
    print(json.dumps({"seconds": found, "peak": peak[0], "facts": facts}))


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parameters", default="250M", help="such as 30M")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--examples", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="of models, task and campaign, made if missing")
    given = parser.parse_args()
    if given.measure:
        measure(given.folder, given.measure, given.documents, given.repeats, given.threads)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        if not (folder / "campaign.yaml").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            parameters = float(given.parameters[:-1]) * {"M": 1e6, "B": 1e9}[given.parameters[-1]]
            make(folder, parameters, given.documents, given.examples)

        def run(*ways: str) -> dict[str, Any]:
            own = ["--folder", str(folder), "--documents", str(given.documents)]
            own += ["--repeats", str(given.repeats if len(ways) > 1 else 1)]
            own += ["--threads", str(given.threads), "--measure", *ways]
            command = [sys.executable, __file__, *own]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            return dict(json.loads(done.stdout.splitlines()[-1]))

        both, alone = run(*WAYS), {way: run(way) for way in WAYS}
        seconds = {way: statistics.median(both["seconds"][way][1:]) for way in WAYS}
        peaks = {way: alone[way]["peak"] for way in WAYS}
        for way in WAYS:
            print(f"{way:10} {seconds[way]:7.1f} CPU s {peaks[way] / 1e6:9,.0f} MB")
        scoring, step = WAYS
        print(
            f"a step over scoring: {seconds[step] / seconds[scoring]:.2f} of the time (aim 3.5), "
        )
        print(f"{peaks[step] / peaks[scoring]:.2f} of the memory (aim 1.6); {both['facts']}")


if __name__ == "__main__":
    main()
