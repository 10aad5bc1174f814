"""What searches need and where they end, on the quickstart's models and on the zoos.

    python benchmarks/searches.py --seeds 5
    python benchmarks/searches.py --cases base_best --arms plain defaults m2n2 --seeds 5

runs campaigns: `plain` is bare cma with 400 trials, `defaults` what a plain campaign file means;
every arm but the first may ask for as many search items as plain cma, or a share of them
(`--share`), gradient descents among them (a document of a step as three, one held back as one).
It prints the items until the best by search reached what plain cma had in the end, the ratio of the
two, and the score on the test split of the winner that each chose on select, beside the best
parent's; it writes `searches.json` and `searches.png`. Each run is on record once it is done, and
the command goes on where it stopped; what is on record of other arms is in the table too. A zoo
that is not there yet is made (benchmarks/zoos).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import runpy
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from evomerge.campaign.defaults import with_defaults
from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.config import BudgetConfig, load_campaign
from evomerge.results.progress import split_size
from evomerge.results.results import Results
from evomerge.study.record import Evaluation
from evomerge.study.run_folder import open_run

HERE = Path(__file__).parent
QUICKSTART = HERE.parent / "search_spaces" / "quickstart" / "quickstart.yaml"
GENERATED = "[{task: listops_eo_generate, metric: exact_match, num_fewshot: 0}]"
CASES = {
    "quickstart": (),
    "generation": (f"fitness.tasks={GENERATED}",),
    "base_best": (),
    "four_experts": (),
    "misleading": (),
    "aside": (),
    "agreeing": (),
    "specialists": (),
}
"""Case → what is changed of its campaign."""
NO_DESCENT, NO_RUNGS, NO_SCREEN = "initial=[]", "fitness.rungs=[all]", "optimizer.screen=1"
BOUNDED = "fitness.surrogate_loss.power=0.7"
ARMS = {
    "plain": ("optimizer.plain=true",),
    "defaults": (),
    "known": (NO_DESCENT, NO_RUNGS, NO_SCREEN),
    "descent": (NO_RUNGS, NO_SCREEN),
    "rungs": (NO_DESCENT,),
    "m2n2": ("optimizer={kind: m2n2}",),
    "m2n2_known": ("optimizer={kind: m2n2}", NO_DESCENT),
    "tpe": ("optimizer={kind: 'optuna:TPESampler'}",),
    "gradient": ("optimizer={kind: gradient}",),
    "gradient_bounded": ("optimizer={kind: gradient}", BOUNDED),
    "method_path": (
        "space.weights.method=[task_arithmetic, ties]",
        "space.path={kind: indicator, repeats: 2}",
        "initial=[{gradient: {steps: 15, batch: 24, held_back: 0, check: 0, from: best_known}}]",
        "optimizer={kind: m2n2, gradient: 0.2}",
        BOUNDED,
    ),
}
"""Arm → what it changes; all but `plain` begin at the best that is known."""


ROUNDING = 1e-9
"""Scores that differ by less are the same; one more right answer changes them by more."""


class Quiet:
    """A listener that says nothing."""

    def on_record(self, evaluations: Iterable[Evaluation]) -> None:
        """Say nothing."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Say nothing."""

    def recorded(self, evaluation: Evaluation) -> None:
        """Say nothing."""

    def said(self, message: str) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Found:
    """A run's best by search after each trial that was measured on all items, and its end.

    Attributes:
        spent: items asked for by then, descents included.
        best: the best score by search so far.
        begun: the best parent's, or default merge's, by search.
        asked: items asked for in all.
        test: the winner's score on test.
        parent: the best parent's there.
        chosen: that of the best found: the winner's, or of a parent that is as good on select; NaN
            in older records.
    """

    spent: list[int]
    best: list[float]
    begun: float
    asked: int
    test: float
    parent: float
    chosen: float = math.nan

    def reached(self, score: float) -> float:
        """Items until `score`, but for rounding; infinite if never."""
        pairs = zip(self.spent, self.best, strict=True)
        return next((spent for spent, best in pairs if best >= score - ROUNDING), math.inf)


def campaign_of(case: str, zoos: Path) -> Path:
    """The case's campaign file; a zoo is made if it is not there."""
    if case in ("quickstart", "generation"):
        return QUICKSTART
    path = zoos / case / "campaign.yaml"
    if not path.is_file():
        sys.path.insert(0, str(HERE / "zoos"))
        partial = zoos / f"{case}.{os.getpid()}"
        runpy.run_path(str(HERE / "zoos" / f"{case}.py"))["make"](partial)
        partial.rename(path.parent)
    return path


def run(
    campaign: Path, folder: Path, changes: Sequence[str], trials: int, share: float | None
) -> Found:
    """Run the campaign with these changes, or go on with it, or read what came of it.

    Args:
        campaign: its file.
        folder: of the run.
        changes: of the campaign file.
        trials: the budget.
        share: of the items that so many trials ask for, after which it stops; None: it does not.
    """
    done, asked = folder / "found.json", folder / "asked.json"
    wanted = [*changes, trials, share]
    if not (done.is_file() and asked.is_file() and json.loads(asked.read_text()) == wanted):
        config = load_campaign(campaign, [*changes, f"budget={{trials: {trials}}}"])
        setup = with_defaults(prepare(config), folder)
        if share is not None:  # stopped early, with the defaults of the whole budget
            items = round(share * trials * sum(setup.sizes("search").values()))
            budget = BudgetConfig(items=items)
            stopped = setup.with_search(setup.config.model_copy(update={"budget": budget}))
            setup = replace(stopped, by_default=setup.by_default)
        with open_campaign(setup, folder, Quiet()) as opened:
            opened.run(None)
        done.write_text(json.dumps(asdict(_read(folder))))
        asked.write_text(json.dumps(wanted))
    return Found(**json.loads(done.read_text()))


def _read(folder: Path) -> Found:
    _, study = open_run(folder)
    with study:
        whole, record = split_size(study, "search"), study.evaluations()
        total, best = sum(d.items for d in study.descents()), -math.inf
        spent, values = [], []
        for one in record:
            if one.optimizers_own:
                total += one.cost(whole)
                if one.measured and one.value is not None:
                    best = max(best, one.value)
                    spent.append(total)
                    values.append(best)
        known = [e.value for e in record if e.split == "search" and e.name and e.value is not None]
        shown = Results(study).best()
    parents = {name: scores["test"]["mean"] for name, scores in shown["parents"].items()}
    test = shown["scores"]["test"]["mean"]
    chosen = parents.get(shown["verdict"]["preferred"], test)
    return Found(spent, values, max(known), total, test, max(parents.values()), chosen)


def runs_of(folder: Path, case: str, arms: Sequence[str]) -> dict[str, dict[int, Found]]:
    """Arm → seed → what is on record."""
    found: dict[str, dict[int, Found]] = {}
    for arm in arms:
        for path in sorted((folder / case / arm).glob("*/found.json")):
            one = Found(**json.loads(path.read_text()))
            found.setdefault(arm, {})[int(path.parent.name)] = one
    return found


def summed_up(runs: Mapping[str, Mapping[int, Found]]) -> dict[str, dict[str, Any]]:
    """Sum each arm up over the seeds that plain cma has too."""
    plain, summary = runs["plain"], {}
    for arm, found in runs.items():
        seeds = sorted(found.keys() & plain.keys())
        if not seeds:
            continue
        ends = {seed: plain[seed].best[-1] for seed in seeds}
        theirs = [plain[seed].reached(ends[seed]) for seed in seeds]
        ours = [found[seed].reached(ends[seed]) for seed in seeds]
        gains = [found[seed].test - plain[seed].test for seed in seeds]
        summary[arm] = {
            "seeds": seeds,
            "items": ours,
            "plain_items": theirs,
            "ratios": [a / b for a, b in zip(theirs, ours, strict=True)],
            "search": [found[seed].best[-1] for seed in seeds],
            "begun": [found[seed].begun for seed in seeds],
            "asked": [found[seed].asked for seed in seeds],
            "test": [found[seed].test for seed in seeds],
            "parent": [found[seed].parent for seed in seeds],
            "chosen": [found[seed].chosen for seed in seeds],
            "gain": _interval(gains),
        }
    return summary


def _interval(values: Sequence[float]) -> list[float]:
    """Mean, and the ends of Student's 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return [mean, math.nan, math.nan]
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return [mean, mean - half, mean + half]


def table(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """Lay the summary out for a terminal: medians over seeds."""
    shown = Table(box=SIMPLE, pad_edge=False)
    for column in ("case", "arm", "seeds", "items", "of plain's", "worst"):
        shown.add_column(column, justify="left" if column in ("case", "arm") else "right")
    for column in ("search", "test", "best parent", "test less plain's"):
        shown.add_column(column, justify="right")
    for case, arms in summary.items():
        for arm, found in arms.items():
            ratios = sorted(found["ratios"])
            mean, low, high = found["gain"]
            items = statistics.median(found["items"])
            shown.add_row(
                case,
                arm,
                str(len(found["seeds"])),
                f"{items:,.0f}",
                _share(statistics.median(ratios)),
                _share(ratios[0]),
                f"{statistics.median(found['search']):.3f}",
                f"{statistics.median(found['test']):.3f}",
                f"{statistics.median(found['parent']):.3f}",
                f"{mean:+.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"),
            )
    return shown


def _share(ratio: float) -> str:
    return f"1/{ratio:.1f}" if ratio else "never"


def draw(found: Mapping[str, Mapping[str, Mapping[int, Found]]], path: Path) -> None:
    """Draw the best by search against items, the median over seeds; a panel for each case."""
    figure = Figure(figsize=(10, 3.2 * math.ceil(len(found) / 2)), dpi=120, layout="constrained")
    for place, (case, arms) in enumerate(found.items(), 1):
        axes = figure.add_subplot(math.ceil(len(found) / 2), 2, place)
        for arm, runs in arms.items():
            grid = np.geomspace(300, max(one.asked for one in runs.values()), 300)
            curves = [_at(one, grid) for one in runs.values()]
            axes.plot(grid, np.median(curves, axis=0), label=arm, linewidth=1.8)
        axes.set(xscale="log", title=f"{case}, {_seeds(arms)}", xlabel="search items")
        axes.set_ylabel("best by search")
        axes.grid(color="#e7eaee")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _seeds(arms: Mapping[str, Mapping[int, Found]]) -> str:
    least = min(map(len, arms.values()))
    return "one seed" if least == 1 else f"median of {least} seeds"


def _at(one: Found, grid: np.ndarray) -> np.ndarray:
    """The best by search at so many items: NaN before the first trial."""
    place = np.searchsorted(one.spent, grid, side="right") - 1
    return np.where(place < 0, np.nan, np.array(one.best)[np.maximum(place, 0)])


def jobs(given: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """(case, arm, seed) in the order in which they run."""
    for seed in range(given.first, given.first + given.seeds):
        for case in given.cases:
            for arm in given.arms:
                yield case, arm, seed


def main() -> None:
    """Parse the command line, run, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--arms", nargs="+", default=["plain", "defaults"], choices=ARMS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--trials", type=int, default=400, help="plain cma's budget")
    parser.add_argument("--share", type=float, default=1.0, help="of plain's items for others")
    parser.add_argument("--show", action="store_true", help="run nothing; show what is on record")
    parser.add_argument("--out", type=Path, default=Path("runs/searches"))
    given = parser.parse_args()
    for case, arm, seed in () if given.show else jobs(given):
        campaign = campaign_of(case, given.out / "zoos")
        changes = (*CASES[case], *ARMS[arm], f"seed={seed}", "workers={isolated: false}")
        share = None if arm == "plain" else given.share
        folder = given.out / case / arm / str(seed)
        one = run(campaign, folder, changes, given.trials, share)
        print(f"{case} {arm} {seed}: search {one.best[-1]:.3f}, test {one.test:.3f}", flush=True)
    found = {case: runs_of(given.out, case, list(ARMS)) for case in given.cases}
    found = {case: runs for case, runs in found.items() if "plain" in runs}
    summary = {case: summed_up(runs) for case, runs in found.items()}
    Console(width=130).print(table(summary))
    (given.out / "searches.json").write_text(json.dumps(summary, indent=1))
    if found:
        draw(found, given.out / "searches.png")


if __name__ == "__main__":
    main()
