"""Everything that a machine with a GPU can show of this project, in under eight minutes.

Run `benchmarks/gpu --to gpu.json`. It needs Python 3.11 or newer with torch, transformers, lm-eval
and pytest; no Ray, no network, no installation. Each step is a process of its own with a time limit
of its own, so that one that fails or hangs costs the others nothing:

- `machine`: names, versions, memory, and bandwidths within the GPU and to it;
- `tests`: the tests marked `gpu`;
- `merge`: `materialize_gpu.py`, as multiples of the memory floor;
- `memory`: `memory_gpu.py`, the plan of the memory against what is measured;
- `scoring`: `scoring_gpu.py`, against plain transformers.

The JSON has for each step its record (`found`), or why there is none (`failed`), and its seconds;
it is written anew after every step. `--dry` runs small forms, on a CPU too; `--simulated` runs them
on the tests' simulated GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import runpy
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LIMITS = {"machine": 45, "tests": 150, "merge": 80, "memory": 60, "scoring": 120}
"""Seconds of each step."""
SMALL = {
    "merge": "--layers 1 --hidden 32 --vocabulary 64 --repeats 1",
    "memory": "--small",
    "scoring": "--small --repeats 1",
}
SCRIPTS = {"merge": "materialize_gpu", "memory": "memory_gpu", "scoring": "scoring_gpu"}
PACKAGES = ("torch", "transformers", "accelerate", "lm_eval", "numpy", "triton", "safetensors")


def machine(device: str, small: bool) -> dict[str, Any]:
    """Names, versions and bandwidths."""
    import torch

    from evomerge.common.accelerator import Accelerator, device_name, synchronize

    found: dict[str, Any] = {
        "device": device_name(torch.device(device)),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "built for": {"cuda": torch.version.cuda, "hip": torch.version.hip},
        "cores": os.cpu_count(),
    }
    if device != "cpu":
        free, total = Accelerator(torch.device(device)).memory()
        found["GB"] = {"free": free / 1e9, "in all": total / 1e9}
    size = 1 << (20 if small else 30)
    here = torch.ones(size, dtype=torch.uint8)
    if device != "cpu":
        here = here.pin_memory()
    there = here.to(device)
    other = torch.empty_like(there)

    def rate(action: Any, nbytes: int) -> float:
        best = float("inf")
        for _ in range(5):
            synchronize(device)
            start = time.perf_counter()
            action()
            synchronize(device)
            best = min(best, time.perf_counter() - start)
        return nbytes / best / 1e9

    found["GB a second"] = {
        "within": rate(lambda: other.copy_(there), 2 * size),
        "to it": rate(lambda: there.copy_(here), size),
    }
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def tests(folder: Path, limit: int) -> dict[str, Any]:
    """Run the tests marked `gpu`, by themselves: the others' helpers may lack packages here."""
    files = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text("utf-8")
    ]
    report = folder / "tests.xml"
    options = ["--noconftest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
    done = _run([sys.executable, "-m", "pytest", *options, f"--junit-xml={report}", *files], limit)
    if not report.exists():
        raise RuntimeError(_tail(done.stdout + done.stderr))
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = {
        f"{case.get('classname')}::{case.get('name')}": _tail(problem.text or "", 600)
        for case in suite.iter("testcase")
        for problem in (*case.findall("failure"), *case.findall("error"))
    }
    return {**counts, "failed tests": failed}


def _run(command: list[str], limit: int) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.run(
        command, capture_output=True, text=True, timeout=limit, cwd=ROOT, env=environment
    )


def _tail(text: str, most: int = 2000) -> str:
    return text.strip()[-most:]


def step_here(name: str, device: str, small: bool) -> None:
    """Run one step in this process; its record is the last line that it prints."""
    if name == "machine":
        print(json.dumps(machine(device, small)))
        return
    more = SMALL[name].split() if small else []
    sys.argv = [SCRIPTS[name], "--json", "--device", device, *more]
    runpy.run_path(str(HERE / f"{SCRIPTS[name]}.py"))["main"]()


def step(name: str, device: str, small: bool, folder: Path) -> dict[str, Any]:
    """Run one step in a process of its own and return its record."""
    limit = LIMITS[name] * (10 if small else 1)  # a dry run may be on a busy machine
    if name == "tests":
        return tests(folder, limit)
    command = [sys.executable, str(HERE / "gpu.py"), "--step", name, "--device", device]
    done = _run(command + ["--dry"] * small, limit)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(_tail(done.stderr) or f"exit code {done.returncode}")
    return json.loads(lines[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--to", type=Path, default=Path("gpu.json"), help="the JSON's file")
    parser.add_argument("--dry", action="store_true", help="small forms, on a CPU if need be")
    parser.add_argument("--simulated", action="store_true", help="small forms, on a simulated GPU")
    parser.add_argument("--steps", default=",".join(LIMITS), help="which, separated by commas")
    parser.add_argument("--device", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--step", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(HERE)]
    if arguments.step:
        if arguments.device != "simgpu":
            step_here(arguments.step, arguments.device, arguments.dry)
            return 0
        sys.path.insert(0, str(ROOT / "tests" / "helpers"))
        from simulated_accelerator import running

        with running():
            step_here(arguments.step, arguments.device, True)
        return 0
    small = arguments.dry or arguments.simulated
    try:
        device = "simgpu" if arguments.simulated else arguments.device or _device(small)
    except Exception as error:
        print(f"no GPU: {error}; `--dry` runs small forms on the CPU", file=sys.stderr)
        return 2
    found: dict[str, Any] = {}
    for name in arguments.steps.split(","):
        start = time.perf_counter()
        try:
            record: dict[str, Any] = {"found": step(name, device, small, arguments.to.parent)}
        except subprocess.TimeoutExpired:
            record = {"failed": f"took more than {LIMITS[name]} s"}
        except Exception as error:  # whatever it is, the other steps go on
            record = {"failed": f"{type(error).__name__}: {error}"}
        found[name] = {**record, "seconds": round(time.perf_counter() - start, 1)}
        arguments.to.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {json.dumps(record)[:3000]}", flush=True)
    return int(any("failed" in record for record in found.values()))


def _device(small: bool) -> str:
    from evomerge.common.accelerator import available

    kind = available()
    if kind is None and not small:
        raise RuntimeError("torch can use none here")
    return kind or "cpu"


if __name__ == "__main__":
    raise SystemExit(main())
