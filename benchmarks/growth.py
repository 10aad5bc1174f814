"""What grows with the number of trials: the driver, and the commands that read its study.

A campaign of the real loop, on workers that take no time (the quickstart's models, TIES with a
weight and a density for each layer and expert, 240 items on search), is searched to 1,000 trials,
to 5,000, to 20,000. At each of these every command runs as a process of its own: its wall and CPU
seconds and its peak memory. `resume` opens the study as a search does that goes on with it,
`refresh` is a dashboard's second drawing. The driver's own CPU time for a trial, and the storage's,
is taken over the last tenth of the trials of each size; its memory for one is the growth of what a
resumed one takes.

Prints a table with the exponent of each row's growth between the least and the greatest size, and
keeps all as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import utilisation
from overhead import BARE, QUICKSTART, SPACE
from utilisation import SimulatedWorkers, writes_timed

from evomerge.campaign.loop import Campaign
from evomerge.campaign.open import open_study
from evomerge.campaign.setup import Setup, prepare
from evomerge.campaign.snapshots import FILE
from evomerge.config import load_campaign
from evomerge.study.record import Evaluation

utilisation.CLOCK = time.process_time  # others may use the machine
ITEMS = "fitness.splits={search: 80, select: 60, test: 60}"
COMMANDS = {
    "status": ["status"],
    "status --json": ["status", "--json"],
    "best": ["best"],
    "report": ["report"],
}
REFRESH = """
import sys, time
from pathlib import Path
from evomerge.report.pages.dashboard import Content
content = Content(Path(sys.argv[1]))
content.text()
content._of, content._due = (), 0.0
wall, cpu = time.perf_counter(), time.process_time()
content.text()
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


LAUNCHER = """
import os, sys, time
began = time.perf_counter()
child = os.fork()
if not child:
    os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC), 1)
    os.execvp(sys.argv[2], sys.argv[2:])
_, status, used = os.wait4(child, 0)
print(time.perf_counter() - began, used.ru_utime, used.ru_stime, used.ru_maxrss)
sys.exit(status != 0)
"""
"""A process's peak begins with that of the one it is forked from, which has to be a small one."""


class Silent:
    """Listens to a campaign: when each trial was recorded, in CPU seconds of the driver."""

    def __init__(self) -> None:
        self.moments: list[float] = []
        self._search = False

    def on_record(self, evaluations: Iterable[Evaluation]) -> None:
        """Nothing."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Note whether it is the search."""
        self._search = name == "search"

    def recorded(self, evaluation: Evaluation) -> None:
        """Take the time of a trial."""
        if self._search:
            self.moments.append(time.process_time())

    def said(self, message: str) -> None:
        """Nothing."""


def configured(trials: int, given: list[str]) -> Setup:
    """The campaign with a budget of so many trials."""
    return prepare(
        load_campaign(QUICKSTART, [SPACE, ITEMS, *BARE, f"budget.trials={trials}", *given])
    )


def search(folder: Path, trials: int, given: list[str], workers: int) -> dict[str, float]:
    """Search until so many trials; what a trial cost the driver at the end of them, CPU seconds."""
    setup, listener = configured(trials, given), Silent()
    executor = SimulatedWorkers(setup, workers, mean=0.0, seed=0)
    with open_study(setup, folder, listener) as study, writes_timed(study) as writes:
        Campaign(setup, study, executor, listener, snapshot=folder / FILE).run()
    latest = listener.moments[-max(2, len(listener.moments) // 10) :]
    wall = latest[-1] - latest[0]
    written = sum(took for began, took in writes if latest[0] < began < latest[-1])
    count = len(latest) - 1
    return {"driver": (wall - written) / count, "storage": written / count}


def resumed(folder: str, trials: str, *given: str) -> None:
    """Print what it takes to take the study up again: wall and CPU seconds."""
    setup, listener = configured(int(trials), list(given)), Silent()
    wall, cpu = time.perf_counter(), time.process_time()
    executor = SimulatedWorkers(setup, 1, mean=0.0, seed=0)
    with open_study(setup, Path(folder), listener) as study:
        Campaign(setup, study, executor, listener, snapshot=Path(folder) / FILE)
        print(time.perf_counter() - wall, time.process_time() - cpu)


def process(command: list[str]) -> tuple[dict[str, float], str]:
    """Run a command: wall and CPU seconds, peak bytes; and what it printed."""
    with tempfile.NamedTemporaryFile() as out:
        launched = [sys.executable, "-S", "-c", LAUNCHER, out.name, *command]
        done = subprocess.run(launched, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        text = Path(out.name).read_text()
    wall, user, system, peak = map(float, done.stdout.split())
    return {"wall": wall, "cpu": user + system, "peak": 1024 * peak}, text


def measured(folder: Path, trials: int, given: list[str], repeats: int) -> dict[str, Any]:
    """What each command takes, the median of some runs."""
    evomerge = [sys.executable, "-m", "evomerge"]
    found: dict[str, Any] = {}
    for name, words in COMMANDS.items():
        runs = [process([*evomerge, *words, str(folder)])[0] for _ in range(repeats)]
        found[name] = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
    peak, text = process([sys.executable, "-c", REFRESH, str(folder)])
    wall, cpu = map(float, text.split())
    found["refresh"] = {"wall": wall, "cpu": cpu, "peak": peak["peak"]}
    code = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
    code += "import growth; growth.resumed(*sys.argv[1:])"
    peak, text = process([sys.executable, "-c", code, str(folder), str(trials), *given])
    wall, cpu = map(float, text.split())
    found["resume"] = {"wall": wall, "cpu": cpu, "peak": peak["peak"]}
    return found


def exponent(sizes: list[int], values: list[float]) -> float:
    """The power of the size by which a value grows, from the least size to the greatest."""
    if len(sizes) < 2 or min(values) <= 0:
        return math.nan
    return math.log(values[-1] / values[0]) / math.log(sizes[-1] / sizes[0])


def table(found: dict[int, dict[str, Any]]) -> list[str]:
    """The rows: what, one number a size, the exponent."""
    sizes = sorted(found)
    lines = ["what".ljust(28) + "".join(f"{size:>10,}" for size in sizes) + "  exponent"]
    units = {"wall": ("s", 1.0), "cpu": ("CPU s", 1.0), "peak": ("MB", 1e6)}
    for name, key in itertools.product(found[sizes[0]]["commands"], units):
        values = [found[size]["commands"][name][key] for size in sizes]
        unit, scale = units[key]
        cells = "".join(f"{value / scale:>10.2f}" for value in values)
        lines.append(f"{name}, {unit}".ljust(28) + cells + f"{exponent(sizes, values):>10.2f}")
    for name in ("driver", "storage"):
        values = [found[size]["trial"][name] for size in sizes]
        cells = "".join(f"{1000 * value:>10.2f}" for value in values)
        lines.append(
            f"{name}, CPU ms a trial".ljust(28) + cells + f"{exponent(sizes, values):>10.2f}"
        )
    if len(sizes) > 1:
        least, most = (found[size]["commands"]["resume"]["peak"] for size in (sizes[0], sizes[-1]))
        each = (most - least) / (sizes[-1] - sizes[0]) / 1000
        lines.append(f"a driver's memory for a trial, kB: {each:.1f}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 5000, 20_000])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="of every command")
    parser.add_argument("--optimizer", default="cma")
    parser.add_argument("--rungs", action="store_true", help="of 32 and 128 items")
    parser.add_argument("--folder", type=Path, help="kept; a folder of a run that is gone on with")
    parser.add_argument("--json", type=Path, default=Path("growth.json"))
    asked = parser.parse_args()
    given = [f"optimizer={{kind: {asked.optimizer}, screen: 1}}"]
    given += ["fitness.rungs=[32, 128, all]"] if asked.rungs else []
    found: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = asked.folder or Path(made) / "run"
        for trials in asked.trials:
            began = time.perf_counter()
            trial = search(folder, trials, given, asked.workers)
            took = time.perf_counter() - began
            print(f"{trials:,} trials: searched in {took:.0f} s", file=sys.stderr)
            commands = measured(folder, trials, given, asked.repeats)
            size = (folder / "study.db").stat().st_size
            found[trials] = {"trial": trial, "commands": commands, "bytes": size}
            asked.json.write_text(json.dumps({"options": given, "sizes": found}, indent=1))
    print("\n".join(table(found)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
