"""Merges by calibration data, as they are and searched, beside task arithmetic and TIES.

    python benchmarks/calibrated.py [--campaign CAMPAIGN.yaml] [--calibration JSON] [--searched N]

On the quickstart's models, or another campaign's: its experts are calibrated on documents of the
tasks, set aside (`evomerge calibrate`), and every method that uses data, or is new beside them, is
scored with its defaults on the test split: mean of the tasks and its 95 % interval. `--searched
TRIALS` also searches each for so many trials, once for each of `--seeds`, and scores the winners.
Prints one row a merge, and what calibrating took; nothing is asserted: it may show that data do not
help.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    "task_arithmetic": WEIGHT,
    "ties": WEIGHT,
    "fisher": WEIGHT,
    "regmean": {"genes": {"reduce": [0, 1], "lambda": [0, 1.5]}},
    "ota": {"genes": {"weight": [0, 1.5], "density": [0.1, 1]}},
    "rcp": {"genes": {"log_penalty": [0, 5], "scale": [0, 1.5]}},
    "task_arithmetic, sparsify: fisher": {
        **WEIGHT,
        "sparsify": {"kind": "fisher", "density": [0.1, 1]},
    },
    "task_arithmetic, aim": {**WEIGHT, "aim": {"omega": [0, 1]}},
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
    parser.add_argument("--only", nargs="*", default=list(SPACES))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        said = {**arguments.calibration, "samples": arguments.samples}
        texts = next(iter(said.get("per_expert", {"": said}).values()))
        said.setdefault("per_expert", {}).setdefault("base", texts)
        said["folder"] = str(folder / "statistics")
        overrides = [f"calibration={json.dumps(said)}"]
        started = time.perf_counter()
        made = calibrate_all(arguments.campaign, overrides, arguments.only)
        size = sum(path.stat().st_size for path in made) / 1e6
        took = time.perf_counter() - started
        print(f"calibrated {len(made)} models in {took:.1f} s, {size:.1f} MB")
        print(f"{'merge':44} {'test':>6}  interval")
        for label in arguments.only:
            config = config_of(arguments.campaign, overrides, label)
            show(f"{label}, default", scored(prepare(config), folder / "run"))
            for seed in range(arguments.seeds if arguments.searched else 0):
                more = [*overrides, f"seed={seed}", f"budget.trials={arguments.searched}"]
                own = config_of(arguments.campaign, more, label)
                found = search(own, folder / f"{label.replace(' ', '')}-{seed}")
                show(f"{label}, searched, seed {seed}", found)
    return 0


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


def search(config: CampaignConfig, out: Path) -> Interval:
    """Run a campaign, and give its winner's score on the test split."""
    with open_campaign(prepare(config), out, Silent()) as campaign:
        campaign.run()
    found = Results(open_run(out)[1]).best()["scores"]["test"]
    return Interval(found["mean"], found["low"], found["high"])


def show(label: str, found: Interval) -> None:
    """Print a row."""
    print(f"{label:44} {found.value:6.3f}  [{found.low:.3f}, {found.high:.3f}]", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
