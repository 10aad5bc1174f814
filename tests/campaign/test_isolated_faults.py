"""What a callable does to its process costs one evaluation, which another process repeats.

`workers.isolated` is true here, as it is by default: these are slow, for a worker's process imports
torch, transformers and lm-eval.
"""

from __future__ import annotations

import json
import os

import pytest
import tiny
from command_line import evomerge
from running import evaluations, facts, run

from evomerge.common.errors import StoppedError

pytestmark = pytest.mark.slow

METRIC = '''
"""How far the model's next word is from the one that is wanted; as a folder's file says, it fails.
"""

import ctypes
import os
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
held = []


def closeness(model, tokenizer, items):
    calls = HERE / "calls"
    nth = int(calls.read_text()) + 1 if calls.exists() else 1
    calls.write_text(str(nth))
    fault, first, end = (HERE / "fault").read_text().split()
    if int(first) <= nth < int(end):
        if fault == "hangs":
            time.sleep(600)
        if fault == "exits":
            os._exit(0)
        if fault == "segfaults":
            ctypes.string_at(0)
        if fault == "leaks":
            held.append(torch.ones(3 << 27))
            time.sleep(600)
        if fault == "truncates":
            weights = HERE / "models" / "math" / "model.safetensors"
            os.truncate(weights, 8)
            os.kill(os.getpid(), 7)  # as whoever reads past the end of a mapped file is
    tokens = torch.tensor([tokenizer.encode(item["text"]) for item in items])
    return -model(tokens).logits[:, -1].argmax(-1) / 64
'''
TASKS = [{"callable": "metrics:closeness", "documents": "closeness.jsonl"}]
KINDS = {
    "hangs": ({"timeout": 30}, "timed out"),
    "exits": ({}, "workers died"),
    "segfaults": ({}, "workers died"),
    "leaks": ({"memory": 1.5}, "workers out of memory"),
}


def make(folder, **workers):
    (folder / "metrics.py").write_text(METRIC)
    mend(folder)
    lines = [{"text": f"w{i} w{3 * i % 60}"} for i in range(20)]
    (folder / "closeness.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    splits = {"search": 0.5, "select": 0.2, "test": 0.3}
    fitness = {"tasks": TASKS, "splits": splits, "select_top": 3}
    tiny.save_campaign(folder, fitness=fitness, workers=workers)


def fail(folder, fault, start, end=10_000):
    (folder / "fault").write_text(f"{fault} {start} {end}")


def mend(folder):
    (folder / "fault").write_text("none 0 0")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in the driver's own process that nothing befell."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.save_campaign(folder)
    make(folder, isolated=False)
    return run(folder)


def counted_events(folder):
    status = json.loads(evomerge("status", folder / "run", "--json").stdout)
    return status["events"]["counts"]


def test_the_same_campaign_isolated_gives_the_same_trials(tiny_folder, whole):
    make(tiny_folder)
    assert facts(run(tiny_folder)) == facts(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_it_happens_once_and_costs_one_evaluation_that_is_repeated(tiny_folder, whole, kind):
    workers, event = KINDS[kind]
    make(tiny_folder, **workers)
    fail(tiny_folder, kind, 15, 16)
    out = run(tiny_folder)
    assert facts(out) == facts(whole), "nothing is lost, and nothing changed"
    assert [e.attempt for e in evaluations(out)].count(2) == 1
    assert counted_events(tiny_folder) == {event: 1}


@pytest.mark.parametrize("kind", ["exits", "segfaults"])
def test_from_then_on_it_stops_the_run_which_keeps_what_was_measured(tiny_folder, whole, kind):
    make(tiny_folder)
    fail(tiny_folder, kind, 15)
    with pytest.raises(StoppedError, match="cannot be scored any more: its worker"):
        run(tiny_folder)
    assert facts(tiny_folder / "run") == facts(whole)[:14]
    mend(tiny_folder)
    run(tiny_folder)
    assert facts(tiny_folder / "run") == facts(whole)


def test_a_model_that_is_cut_short_while_it_is_read_stops_the_run_with_its_name(tiny_folder, whole):
    make(tiny_folder)
    weights = tiny_folder / "models" / "math" / "model.safetensors"
    before, times = weights.read_bytes(), weights.stat()
    fail(tiny_folder, "truncates", 15)
    with pytest.raises(StoppedError, match=r"math/model\.safetensors: has 8 bytes instead of"):
        run(tiny_folder)
    assert facts(tiny_folder / "run") == facts(whole)[:14]
    weights.write_bytes(before)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    mend(tiny_folder)
    run(tiny_folder)
    assert facts(tiny_folder / "run") == facts(whole)
    assert {e.attempt for e in evaluations(tiny_folder / "run")} == {1}, "it was no attempt"
