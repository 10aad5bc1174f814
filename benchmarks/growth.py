"""How costs grow: with trials, experts, genes, items of a candidate, workers.

Every row is one cost at several sizes, with the exponent of its growth between the least and the
greatest. Costs are CPU seconds, for others may use the machine, and memory.

- trials: the real loop on workers that take no time (the quickstart's models, TIES with a weight
  and a density for each layer and expert, 240 items on search) searches to 1,000 trials, to 5,000,
  to 20,000. At each of these every command runs as a process of its own. `resume` opens the study
  as a search does that goes on with it, `refresh` is a dashboard's second drawing. The driver's own
  time for a trial, and the storage's, is taken over the last tenth of the trials of each size; its
  memory for one is the growth of what a resumed one takes.
- experts: one candidate of a Llama of 7 M parameters, bf16, as a worker makes it, one thread; the
  sources are mapped, and are no part of the worker's own memory.
- genes: ask and tell of each optimizer, after 200 trials; storing a trial.
- items: a campaign of 40 trials whose candidates have so many items on search.
- workers: the driver of so many simulated ones, whose evaluations take 30 s in the mean, with
  rungs; see `utilisation.py`.

Prints a table for each, and keeps all as JSON.
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
import optimizers
import utilisation
import yaml
from overhead import BARE, QUICKSTART, SPACE
from utilisation import SimulatedWorkers, writes_timed

from evomerge.campaign.loop import Campaign
from evomerge.campaign.open import open_study
from evomerge.campaign.setup import Setup, prepare
from evomerge.campaign.snapshots import FILE
from evomerge.config import OptimizerConfig, load_campaign
from evomerge.search.optimizers import build_optimizer
from evomerge.study.record import Evaluation
from evomerge.study.run_folder import open_study as open_run
from evomerge.study.storage_url import sqlite_url

utilisation.CLOCK = time.process_time  # others may use the machine
ITEMS = "fitness.splits={search: 80, select: 60, test: 60}"
SIZES = {
    "trials": [1000, 5000, 20_000],
    "experts": [2, 10, 40],
    "genes": [10, 100, 1000, 5000],
    "items": [100, 1000, 20_000],
    "workers": [1, 16, 64, 256],
}
OPTIMIZERS = {
    "cma": False,
    "cma (some genes with levels)": True,
    **dict.fromkeys(("de", "ga", "m2n2", "map_elites", "nsga2", "pso", "random"), False),
}
"""Those whose ask and tell are timed; True where a fifth of the genes are whole numbers."""
UNITS = {"wall": ("s", 1.0), "cpu": ("CPU s", 1.0), "peak": ("MB", 1e6)}
COMMANDS = {
    "status": ["status"],
    "status --json": ["status", "--json"],
    "best": ["best"],
    "report": ["report"],
}
REFRESH = """
import gc, sys, time
from pathlib import Path
from evomerge.report.pages.dashboard import Content
content = Content(Path(sys.argv[1]))
content.text()
gc.freeze()  # as the command does
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


def search(folder: Path, setup: Setup, workers: int) -> dict[str, float]:
    """Search to the end of the budget; what a trial cost the driver at the end, CPU seconds."""
    listener = Silent()
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
    peak, text = process(own("resumed", folder, trials, *given))
    wall, cpu = map(float, text.split())
    found["resume"] = {"wall": wall, "cpu": cpu, "peak": peak["peak"]}
    return found


Rows = dict[str, dict[int, float]]
"""What, with its unit → size → value."""


def trials(sizes: list[int], asked: argparse.Namespace, folder: Path) -> Rows:
    """What grows with the number of trials."""
    given = [f"optimizer={{kind: {asked.optimizer}, screen: 1}}"]
    given += ["fitness.rungs=[32, 128, all]"] if asked.rungs else []
    rows: Rows = {}
    for size in sizes:
        began = time.perf_counter()
        trial = search(folder, configured(size, given), asked.workers)
        print(f"{size:,} trials: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        for name, costs in measured(folder, size, given, asked.repeats).items():
            for key, (unit, scale) in UNITS.items():
                rows.setdefault(f"{name}, {unit}", {})[size] = costs[key] / scale
        for name, cost in trial.items():
            rows.setdefault(f"{name}, CPU ms a trial", {})[size] = 1000 * cost
        content = (folder / "study.db").stat().st_size
        rows.setdefault("a trial in the file, kB", {})[size] = content / size / 1e3
    peak = rows["resume, MB"]
    if len(sizes) > 1:
        each = 1000 * (peak[sizes[-1]] - peak[sizes[0]]) / (sizes[-1] - sizes[0])
        rows["a driver's memory for a trial, kB"] = {sizes[-1]: each}
    return rows


def candidate(folder: str, count: str, method: str) -> None:
    """Print CPU seconds of a candidate of so many experts, and the process's own megabytes."""
    import torch

    from evomerge.materialize.kernel import Kernel
    from evomerge.materialize.plan import plan
    from evomerge.models.checkpoint import open_checkpoint
    from evomerge.recipe import BASE, Merge, Recipe, Slot

    torch.set_num_threads(1)
    names = [f"expert{i}" for i in range(int(count))]
    sources = {name: open_checkpoint(name, f"{folder}/{name}") for name in (BASE, *names)}
    layout, kernel = sources[BASE].layout, Kernel(sources)
    resident = {t.name: torch.empty(t.shape) for t in layout.tensors}
    drawn = {"density": 0.5} if method == "ties" else {}
    groups = [(None, group) for group in layout.outside_groups]
    groups += [(layer, "layer") for layer in range(layout.layers)]
    seconds = []
    for place in range(6):  # the first reads the sources' statistics
        chosen = {name: {**drawn, "weight": 0.3 + 0.01 * place} for name in names}
        recipe = Recipe(
            sources=dict.fromkeys(sources, "unused"),
            path=tuple(Slot(source=BASE, layer=layer) for layer in range(layout.layers)),
            merges=tuple(
                Merge(slot=slot, group=group, method=method, experts=chosen, parameters={})
                for slot, group in groups
            ),
        )
        began = time.process_time()
        with torch.no_grad():
            steps = plan(recipe, layout, sources)
            kernel.fill_all([(resident[step.tensor.name], step) for step in steps], recipe.seed)
        seconds.append(time.process_time() - began)
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(line for line in lines if line.startswith("RssAnon"))
    print(np.median(seconds[1:]), int(held.split()[1]) / 1000)


def experts(sizes: list[int], asked: argparse.Namespace, folder: Path) -> Rows:
    """What grows with the number of experts."""
    from materialize import save_models

    save_models(folder, 2, [f"expert{i}" for i in range(max(sizes))])
    rows: Rows = {}
    for size, method in itertools.product(sizes, ("task_arithmetic", "ties")):
        _, text = process(own("candidate", folder, size, method))
        cpu, megabytes = map(float, text.split())
        rows.setdefault(f"{method}, a candidate, CPU s", {})[size] = cpu
        rows.setdefault(f"{method}, a worker's own memory, MB", {})[size] = megabytes
    return rows


def genes(sizes: list[int], asked: argparse.Namespace, folder: Path) -> Rows:
    """What grows with the number of genes."""
    rows: Rows = {}
    for size in sizes:
        told = optimizers.record(size, 200)
        for name, mixed in OPTIMIZERS.items():
            kind = OptimizerConfig(kind=name.split()[0])
            made = build_optimizer(kind, optimizers.domain(size, mixed=mixed), 0)
            spent = optimizers.ask_and_tell(made, told, 160, time.process_time)
            rows.setdefault(f"{name}, ask and tell, CPU ms", {})[size] = 1000 * np.mean(spent)
        file = folder / f"{size}.db"
        began = time.process_time()
        optimizers.write_study(sqlite_url(file), optimizers.domain(size), told)
        each = 1000 * (time.process_time() - began) / len(told)
        rows.setdefault("storing a trial, CPU ms", {})[size] = each
        rows.setdefault("a trial in the file, kB", {})[size] = file.stat().st_size / len(told) / 1e3
    return rows


def items(sizes: list[int], asked: argparse.Namespace, folder: Path) -> Rows:
    """What grows with the number of items of a candidate."""
    rows: Rows = {}
    (folder / "own.py").write_text("def chance(model, tokenizer, items):\n    return []\n")
    campaign = yaml.safe_load(QUICKSTART.read_text())
    models, zoo = campaign["models"], QUICKSTART.parent
    models["base"] = str(zoo / models["base"])
    models["experts"] = {name: str(zoo / path) for name, path in models["experts"].items()}
    for size in sizes:
        lines = (json.dumps({"row": row}) + "\n" for row in range(size + 100))
        (folder / "rows.jsonl").write_text("".join(lines))
        campaign["fitness"] = {
            "tasks": [{"callable": "own:chance", "documents": "rows.jsonl"}],
            "splits": {"search": size, "select": 50, "test": 50},
        }
        file, run = folder / "campaign.yaml", folder / str(size)
        file.write_text(yaml.safe_dump(campaign))
        setup = prepare(load_campaign(file, [SPACE, *BARE, "budget.trials=40"]))
        for name, cost in search(run, setup, 4).items():
            rows.setdefault(f"{name}, CPU ms a trial", {})[size] = 1000 * cost
        content = (run / "study.db").stat().st_size
        rows.setdefault("a trial in the file, kB", {})[size] = content / 40 / 1e3
        _, text = process(own("read", run))
        rows.setdefault("reading a trial's scores, CPU ms", {})[size] = float(text)
        for name in ("status", "best", "report"):
            used, _ = process([sys.executable, "-m", "evomerge", name, str(run)])
            rows.setdefault(f"{name}, CPU s", {})[size] = used["cpu"]
            rows.setdefault(f"{name}, MB", {})[size] = used["peak"] / 1e6
    return rows


def read(folder: str) -> None:
    """Print the CPU milliseconds in which a trial's scores are read."""
    mine = [one for one in open_run(Path(folder)).evaluations() if one.optimizers_own]
    began = time.process_time()
    if not all(one.scores for one in mine):
        raise SystemExit(f"{folder}: a trial without scores")
    print(1000 * (time.process_time() - began) / len(mine))


def workers(sizes: list[int], asked: argparse.Namespace, folder: Path) -> Rows:
    """What grows with the number of workers."""
    rows: Rows = {}
    given = ["optimizer={kind: cma, screen: 1}", "fitness.rungs=[32, 128, all]"]
    for size in sizes:
        found = utilisation.measure(given, 1000, size, 30.0)
        rows.setdefault("the workers' utilisation", {})[size] = found.busy
        rows.setdefault("driver, CPU ms a trial", {})[size] = 1000 * found.own
        rows.setdefault("storage, CPU ms a trial", {})[size] = 1000 * found.storage
    return rows


def own(function: str, *arguments: object) -> list[str]:
    """The command that calls a function of this file with texts, in a process of its own."""
    code = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
    code += f"import growth; growth.{function}(*sys.argv[1:])"
    return [sys.executable, "-c", code, *map(str, arguments)]


def exponent(values: dict[int, float]) -> float:
    """The power of the size by which a value grows, from the least size to the greatest."""
    least, most = min(values), max(values)
    if least == most or min(values.values()) <= 0:
        return math.nan
    return math.log(values[most] / values[least]) / math.log(most / least)


def table(name: str, sizes: list[int], rows: Rows) -> list[str]:
    """One line a row: what, one number a size, the exponent."""
    lines = [name.ljust(52) + "".join(f"{size:>10,}" for size in sizes) + "  exponent"]
    for row, values in rows.items():
        cells = "".join(f"{values.get(size, math.nan):>10.4g}" for size in sizes)
        lines.append(row.ljust(52) + cells + f"{exponent(values):>10.2f}")
    return [line.replace("nan", "   ") for line in lines]


MEASURES = {measure.__name__: measure for measure in (trials, experts, genes, items, workers)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="*", help=f"{', '.join(MEASURES)}; default: all")
    parser.add_argument("--sizes", type=int, nargs="+", help="of the one that is measured")
    parser.add_argument("--workers", type=int, default=64, help="simulated; for trials")
    parser.add_argument("--repeats", type=int, default=3, help="of every command; for trials")
    parser.add_argument("--optimizer", default="cma", help="for trials")
    parser.add_argument("--rungs", action="store_true", help="of 32 and 128 items; for trials")
    parser.add_argument("--folder", type=Path, help="kept; a run of trials that is gone on with")
    parser.add_argument("--json", type=Path, default=Path("growth.json"))
    asked = parser.parse_args()
    if unknown := set(asked.what) - set(MEASURES):
        parser.error(f"{', '.join(unknown)}: not measured; {', '.join(MEASURES)} are")
    if asked.sizes and len(asked.what) != 1:
        parser.error("--sizes: name the one that is measured")
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Rows] = {}
    for name in asked.what or MEASURES:
        sizes = asked.sizes or SIZES[name]
        with tempfile.TemporaryDirectory() as made:
            kept = asked.folder if name == "trials" else None
            found[name] = MEASURES[name](sizes, asked, kept or Path(made))
        print("\n".join([*table(name, sizes, found[name]), ""]), flush=True)
        asked.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
