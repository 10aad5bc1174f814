"""The GPU's benchmark runs wherever there is none, on small shapes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "materialize_gpu.py"


def test_the_gpus_benchmark_runs_on_small_shapes_without_one(monkeypatch, capsys):
    small = "--device cpu --layers 1 --hidden 32 --vocabulary 64 --repeats 1 --json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *small.split()])
    runpy.run_path(str(SCRIPT))["main"]()
    told = json.loads(capsys.readouterr().out)
    assert set(told["ratios"]) == {"task_arithmetic", "ties"}
    assert all(value > 0 for value in told["seconds"].values())
