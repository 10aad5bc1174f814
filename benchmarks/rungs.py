"""What rungs and estimators save, on simulated candidates: no model is needed.

Candidates are points in ten dimensions; their abilities at three tasks fall with the distance to
the tasks' optima, and what they answer to an item follows a two-parameter logistic model, the same
chance for near candidates. CMA-ES searches for the best, once with every item for everybody and
once with rungs; the score is the true one of whoever is best by search.

    python benchmarks/rungs.py --seeds 8

prints the item evaluations that the search with rungs needs to reach what the full one reaches with
its whole budget, as a ratio to those the full one needs and to its budget; and how far the
estimators are off at the first rung, with the coverage of their 90 % intervals.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cmaes import CMA
from numpy.typing import NDArray

from evomerge.judging.constraints import Items
from evomerge.judging.estimators.calibration import calibrate
from evomerge.judging.estimators.responses import estimator_of
from evomerge.judging.objectives import find_objective
from evomerge.judging.pruning import is_pruned, items_at
from evomerge.judging.rung_items import Rungs, fix_rungs
from evomerge.judging.scores import Judge

TASKS = ("one", "two", "three")
ITEMS = 200
GENES = 10
TRIALS = 100
NEAR = 0.005
"""A score this close to the full search's last has reached it."""
JUDGE = Judge(find_objective("mean", "bench"), TASKS, np.ones(3), np.ones(3))


@dataclass
class World:
    """Items, and what candidates answer."""

    seed: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 1])
        self.alpha = np.exp(rng.normal(0, 0.4, (3, ITEMS)))
        self.beta = rng.normal(0.3, 1.2, (3, ITEMS))
        self.optima = 0.25 + 0.5 * rng.random((3, GENES))
        self.waves = rng.normal(0, 1.5, (3, ITEMS, GENES))
        self.phases = 2 * np.pi * rng.random((3, ITEMS))
        self.rng = np.random.default_rng([self.seed, 2])

    def chances(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """P of a right answer, shape (tasks, items)."""
        ability = 2.0 - 18 * ((x - self.optima) ** 2).mean(axis=1)
        return 1 / (1 + np.exp(self.beta - self.alpha * ability[:, None]))

    def answers(self, x: NDArray[np.float64]) -> Items:
        """Right or wrong; half of the luck is shared by near candidates."""
        shared = (np.sin(3 * self.waves @ x + self.phases) + 1) / 2
        luck = 0.5 * shared + 0.5 * self.rng.random(shared.shape)
        return dict(zip(TASKS, (luck < self.chances(x)).astype(float), strict=True))

    def references(self) -> list[Items]:
        """Six that are measured first."""
        return [self.answers(x) for x in np.random.default_rng(self.seed).random((6, GENES))]


def search(seed: int, rungs: Sequence[int], keep: float, confidence: float) -> NDArray[np.float64]:
    """(items asked for, true score of the best by search) after each trial, until TRIALS · items
    are spent.
    """
    world, sizes = World(seed), dict.fromkeys(TASKS, ITEMS)
    fixed = fix_rungs([*rungs, "all"], sizes, dict.fromkeys(TASKS, 1.0), world.references())
    bounds = np.tile([0.0, 1.0], (GENES, 1))
    cma = CMA(np.full(GENES, 0.5), 0.3, bounds=bounds, seed=seed, population_size=10)
    incumbents: list[list[Items]] = [[] for _ in rungs]
    spent, best, true, curve, generation = 0, -np.inf, np.nan, [], []
    while spent < TRIALS * ITEMS * len(TASKS):
        x = cma.ask()
        value, rung = _climb(world.answers(x), fixed, incumbents, keep, confidence)
        spent += fixed.total(rung)
        if rung == len(rungs) and value > best:
            best, true = value, float(world.chances(x).mean())
        curve.append((spent, true))
        generation.append((x, -value))
        if len(generation) == 10:
            cma.tell(generation)
            generation = []
    return np.array(curve)


def _climb(
    items: Items, rungs: Rungs, incumbents: list[list[Items]], keep: float, confidence: float
) -> tuple[float, int]:
    """A candidate's score, estimated by the mean if it is stopped, and the rung it reached."""
    for rung, rivals in enumerate(incumbents):
        ours = items_at(items, rungs.places(rung))
        table = {t: np.array([rival[t] for rival in rivals]) for t in TASKS}
        stopped = bool(rivals) and is_pruned(JUDGE, ours, table, keep, confidence)
        rivals.append(ours)
        if stopped:
            return JUDGE.value_of(ours), rung
    return JUDGE.value_of(items), len(incumbents)


def estimates(seed: int, rung: int, models: int = 30, new: int = 60) -> dict[str, list[tuple]]:
    """Estimator → (estimate, standard error, full score) of new candidates on the first rung."""
    world, sizes = World(seed), dict.fromkeys(TASKS, ITEMS)
    references = world.references()
    fixed = fix_rungs([rung, "all"], sizes, dict.fromkeys(TASKS, 1.0), references)
    spread = world.rng.normal(0, 0.15, (models + new, GENES))
    answers = [world.answers(x) for x in np.clip(world.optima.mean(axis=0) + spread, 0, 1)]
    full, places = [*references, *answers[:models]], fixed.places(0)
    found: dict[str, list[tuple]] = {}
    for name in ("mean", "mp_irt", "gmp_irt"):
        estimator = estimator_of(name, full, [places])
        for items in answers[models:]:
            partial = {t: np.full(ITEMS, np.nan) for t in TASKS}
            for task, at in places.items():
                partial[task][at] = items[task][at]
            means, errors = np.array([estimator(partial)[t] for t in TASKS]).T
            se = JUDGE.error(means, errors)
            found.setdefault(name, []).append((means.mean(), se, JUDGE.value_of(items)))
    return found


def main() -> int:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rungs", type=int, nargs="*", default=[32, 100, 300])
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--confidence", type=float, default=0.6)
    options = parser.parse_args()
    ratios, shares, finals = [], [], []
    for seed in range(options.seeds):
        full = search(seed, [], options.keep, options.confidence)
        quick = search(seed, options.rungs, options.keep, options.confidence)
        needed = [_reached(curve, full[-1, 1] - NEAR) for curve in (full, quick)]
        ratios.append(needed[1] / needed[0])
        shares.append(needed[1] / full[-1, 0])
        finals.append((full[-1, 1], quick[-1, 1]))
    at_end = np.mean(finals, axis=0)
    print(f"rungs {options.rungs}, {options.seeds} seeds: to reach what full evaluation ends at")
    print(f"  items / items that full evaluation needs for it  {np.median(ratios):.3f} (median)")
    print(f"  items / full evaluation's whole budget           {np.median(shares):.3f} (median)")
    print(f"  true score at equal budgets: full {at_end[0]:.3f}, with rungs {at_end[1]:.3f} (mean)")
    checks: dict[str, list[tuple]] = {}
    for seed in range(options.seeds):
        for name, found in estimates(seed, options.rungs[0]).items():
            checks.setdefault(name, []).extend(found)
    print(f"estimators at {options.rungs[0]} of {ITEMS * len(TASKS)} items:")
    for name, found in checks.items():
        result = calibrate(found)
        covered = result.covered / result.of
        error = f"mean absolute error {result.error:.4f}"
        print(f"  {name:8} {error}, coverage of the 90 % interval {covered:.2f}")
    return 0


def _reached(curve: NDArray[np.float64], target: float) -> float:
    there = np.flatnonzero(curve[:, 1] >= target)
    return float(curve[there[0], 0]) if len(there) else np.inf


if __name__ == "__main__":
    sys.exit(main())
