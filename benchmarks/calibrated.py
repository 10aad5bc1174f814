"""Merges by calibration data, as they are and searched, beside task arithmetic and TIES.

    python benchmarks/calibrated.py --searched 60
    python benchmarks/calibrated.py --searched 60 --campaign CAMPAIGN.yaml --calibration JSON

On the quickstart's models, or another campaign's: its experts are calibrated on documents of the
tasks, set aside (`evomerge calibrate`), and every method that uses data, or is new beside them, is
scored with its defaults on the test split: mean of the tasks and its 95 % interval over documents.
`--searched TRIALS` also searches each by so many trials of `cma` from the best that is known,
without gradients, once for each of `--seeds`, and scores the winners on test: their mean, and that
of their lead over the winner of TIES with the same seed, each with Student's 95 % interval over
seeds. Prints one row a merge, and what calibrating took. A search that is in `--to` already is not
run again. Nothing is asserted: it may show that data do not help.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from evomerge.campaign.calibrate import calibrate_campaign
from evomerge.campaign.calibration_needs import needed_kinds
from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import Setup, prepare
from evomerge.config import CampaignConfig, load_campaign
from evomerge.judging.intervals import Interval, interval
from evomerge.methods.core.aim import aimed
from evomerge.methods.core.calibration_in_recipes import with_calibration
from evomerge.methods.core.sparsify_in_recipes import sparsified
from evomerge.models.checks.digests import calibration_digests, digests_of
from evomerge.results.results import Results
from evomerge.study.run_folder import open_run
from evomerge.workers.devices import threads_per_worker
from evomerge.workers.worker import Worker, WorkerSpec

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "search_spaces" / "quickstart" / "quickstart.yaml"
TEXTS = {"math": {"task": "listops_en"}, "lang": {"task": "translate_eo"}}
WEIGHT: dict[str, Any] = {"genes": {"weight": [0, 1.5]}}
SPACES: dict[str, dict[str, Any]] = {
    "ties": WEIGHT,
    "task_arithmetic": WEIGHT,
    "fisher": WEIGHT,
    "regmean": {"genes": {"reduce": [0, 1], "lambda": [0, 1.5]}},
    "ota": {"genes": {"weight": [0, 1.5], "density": [0.1, 1]}},
    "rcp": {"genes": {"log_penalty": [0, 5], "scale": [0, 1.5]}},
    "task_arithmetic, sparsify: fisher": {
        **WEIGHT,
        "sparsify": {"kind": "fisher", "density": [0.1, 1]},
    },
    "task_arithmetic, aim": {**WEIGHT, "aim": {"omega": [0, 1]}},
    "pleas": {"genes": {"ridge": [0, 1], "lambda": [0, 1.5]}},
    "balanced_task_arithmetic": WEIGHT,
    "doge": {"genes": {"eta": [0.01, 3], "density": [0.1, 1]}},
    "swudi": {"genes": {"share": [0.3, 1], "lambda": [0, 1.5]}},
    "aswudi": {"genes": {"lambda": [0, 1.5]}},
}
SHARE = 0.4
"""The density of trims by Fisher, and AIM's ω, as their papers have them."""


class Silent:
    """Hears of a campaign's progress and says nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **more: None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--campaign", type=Path, default=QUICKSTART)
    parser.add_argument("--calibration", type=json.loads, default={"per_expert": TEXTS})
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--searched", type=int, default=0, metavar="TRIALS")
    parser.add_argument("--seeds", type=int, default=5)
    own_texts = [label for label in SPACES if label != "pleas"]  # which wants the same for all
    parser.add_argument("--only", nargs="*", default=own_texts, choices=SPACES)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the campaign")
    parser.add_argument("--to", type=Path, help="keeps the searches; without it nothing is kept")
    arguments = parser.parse_args()
    kept = nullcontext(str(arguments.to)) if arguments.to else tempfile.TemporaryDirectory()
    with kept as name:
        folder = Path(name)
        said = {**arguments.calibration, "samples": arguments.samples}
        if own := said.get("per_expert"):
            own.setdefault("base", next(iter(own.values())))
        said["folder"] = str((folder / "statistics").absolute())
        overrides = [*arguments.set, f"calibration={json.dumps(said)}"]
        started = time.perf_counter()
        made = calibrate_all(arguments.campaign, overrides, arguments.only)
        size = sum(path.stat().st_size for path in made) / 1e6
        took = time.perf_counter() - started
        print(f"calibrated {len(made)} models in {took:.1f} s, {size:.1f} MB")
        print(f"{'merge':36} {'default':22}  {'searched':22}  searched less TIES searched")
        ties: list[float] = []
        for label in arguments.only:
            config = config_of(arguments.campaign, overrides, label)
            default = scored(prepare(config), folder / "run")
            ends = []
            for seed in range(arguments.seeds if arguments.searched else 0):
                more = [*overrides, f"seed={seed}", f"budget.trials={arguments.searched}"]
                own = config_of(arguments.campaign, more, label)
                ends.append(search(own, folder / f"{label.replace(' ', '')}-{seed}"))
            ties = ends if label == "ties" else ties
            leads = [a - b for a, b in zip(ends, ties, strict=False)]
            shown = f"{default.value:.3f} [{default.low:.3f}, {default.high:.3f}]"
            print(f"{label:36} {shown:22}  {over_seeds(ends):22}  {over_seeds(leads)}", flush=True)
    return 0


def over_seeds(values: Sequence[float]) -> str:
    """Show the mean and Student's interval."""
    if len(values) < 2:
        return ""
    mean, error = np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))
    half = student.ppf(0.975, len(values) - 1) * error
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def calibrate_all(campaign: Path, overrides: Sequence[str], labels: Sequence[str]) -> list[Path]:
    """Write the files that all of the merges together need."""
    kinds: dict[str, dict[str, None]] = {}
    for label in labels:
        config = config_of(campaign, overrides, label)
        for model, own in needed_kinds(config).items():
            kinds.setdefault(model, {}).update(dict.fromkeys(own))
    plain = load_campaign(campaign, overrides)
    found: list[Path] = []
    for model, own in kinds.items():
        found += calibrate_campaign(plain, only=model, kinds=list(own))
    return found


def config_of(campaign: Path, overrides: Sequence[str], label: str) -> CampaignConfig:
    """Give the campaign one of `SPACES`."""
    weights = {"method": label.partition(",")[0], "granularity": "layer", **SPACES[label]}
    return load_campaign(campaign, [*overrides, f"space.weights={json.dumps(weights)}"])


def scored(setup: Setup, folder: Path) -> Interval:
    """Score a method's default, with what wraps it, on the test split."""
    [method] = setup.config.space.weights.methods
    found = setup.space.baselines()
    recipe = found.get(f"{method} default", found["average"])
    weights = setup.config.space.weights
    if weights.sparsify is not None:
        recipe = sparsified(recipe, "fisher", lambda _: SHARE, {}, 0)
    if weights.aim is not None:
        recipe = aimed(recipe, lambda _: SHARE)
    recipe = with_calibration(recipe, calibration_digests(setup.models.sources))
    spec = WorkerSpec(
        setup.config,
        setup.measured_items,
        threads_per_worker(setup.config),
        statistics=folder,
        digests=digests_of(setup.models.sources),
    )
    return interval(setup.judge, Worker(spec).measure(recipe, "test").scores)


def search(config: CampaignConfig, out: Path) -> float:
    """Run a campaign, or read it, and give its winner's score on the test split."""
    done = out / "test.json"
    if not done.is_file():
        with open_campaign(prepare(config), out, Silent()) as campaign:
            campaign.run()
        done.write_text(json.dumps(Results(open_run(out)[1]).best()["scores"]["test"]["mean"]))
    return json.loads(done.read_text())


if __name__ == "__main__":
    raise SystemExit(main())
