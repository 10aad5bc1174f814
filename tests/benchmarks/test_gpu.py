"""The GPU's benchmark runs wherever there is none, with what a bare machine has."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
BARE = (
    *("torch", "transformers", "accelerate", "peft", "lm_eval", "pandas", "scipy", "pytest"),
    *("cmaes", "optuna", "plotly", "pydantic", "psutil", "rich", "starlette", "tenacity", "typer"),
    *("uvicorn", "evomerge", "pip", "setuptools"),
)
"""Packages of a machine with a GPU, and small ones that are brought along; with what they need."""


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def there():
    """Names of the packages on such a machine."""
    found, left = {"evomerge"}, [canonical(name) for name in BARE]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needs = map(Requirement, metadata.requires(name) or ())
        except metadata.PackageNotFoundError:
            continue
        left += [
            canonical(need.name)
            for need in needs
            if need.marker is None or need.marker.evaluate({"extra": ""})
        ]
    return found


@pytest.fixture
def bare(tmp_path):
    """An environment in which everything else cannot be imported."""
    known = there()
    lacking = sorted(
        module
        for module, packages in metadata.packages_distributions().items()
        if not {canonical(package) for package in packages} & known
    )
    assert {"ray", "hypothesis", "mergekit", "matplotlib"} <= set(lacking)
    lines = f"import sys\nfor name in {lacking!r}:\n    sys.modules[name] = None\n"
    (tmp_path / "sitecustomize.py").write_text(lines)
    return {**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run(bare, form, steps, to):
    command = [str(ROOT / "benchmarks" / "gpu"), form, "--to", str(to), "--steps", steps]
    done = subprocess.run(
        command, env={**bare, "PYTHON": sys.executable}, capture_output=True, text=True
    )
    found = json.loads(to.read_text())
    assert done.returncode == 0, (found, done.stderr)
    assert list(found) == steps.split(",")
    return {name: record["found"] for name, record in found.items()}


@pytest.mark.slow
def test_it_runs_on_a_bare_machine(bare, tmp_path):
    found = run(bare, "--dry", "tests,merge,scoring", tmp_path / "gpu.json")
    assert found["tests"]["skipped"] == found["tests"]["tests"] > 0  # there is no GPU
    assert found["merge"]["ratios"]["ties"] > 0
    assert set(found["scoring"]["ratios"]) == {"loglikelihood", "generation"}
    assert found["scoring"]["answers that agree"] == 6


@pytest.mark.slow
def test_it_runs_on_a_simulated_gpu(bare, tmp_path):
    found = run(bare, "--simulated", "machine,memory", tmp_path / "gpu.json")
    assert found["machine"]["device"] == found["memory"]["device"] == "Simulated GPU"
    assert found["memory"]["GB"]["candidate"]["ratio"] == 1


def test_a_step_that_fails_costs_no_other(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    def step(name, device, small, folder):
        if name == "merge":
            raise subprocess.TimeoutExpired("merge", 80)
        if name == "tests":
            raise RuntimeError("no tests here")
        return {"name": name, "device": device}

    monkeypatch.setattr(gpu, "step", step)
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry", "--to", str(tmp_path / "gpu.json")])
    assert gpu.main() == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["merge"]["failed"] == "took more than 80 s"
    assert found["tests"]["failed"] == "RuntimeError: no tests here"
    assert found["scoring"]["found"] == {"name": "scoring", "device": "cpu"}


def test_all_steps_together_take_less_than_eight_minutes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    assert sum(gpu.LIMITS.values()) < 8 * 60
