"""What surrogates save, on simulated candidates: no model is needed.

Candidates are points in ten dimensions, as in rungs.py: their abilities at three tasks fall with
the distance to the tasks' optima, and they answer items with luck. Each optimizer searches for the
best mean over the tasks, alone and screened; what is compared is the true score of whoever is best
by search. Then `map` and others search for the front of the tasks, and the volumes are compared
that it truly dominates. Abilities that are quadratic in the genes are what `map` assumes.

    python benchmarks/surrogates.py --seeds 10

prints, for each optimizer, the true score after all trials, and the trials after which the screened
search truly has what the other ends with, as a share of those the other needs for it.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rungs import GENES, NEAR, TASKS, World

from evomerge.config import OptimizerConfig
from evomerge.judging import pareto
from evomerge.judging.objectives import find_objective
from evomerge.judging.scores import Judge
from evomerge.search.optimizers import build_optimizer
from evomerge.search.spaces.genes import Domain, Gene

ONES = np.ones(len(TASKS))
FRONT = {"of": list(TASKS)}
MEAN = Judge(find_objective("mean", "bench"), TASKS, ONES, ONES)
PARETO = Judge(find_objective("pareto", "bench", FRONT, TASKS), TASKS, ONES, ONES)
REFERENCE = (0.3, 0.3, 0.3)
"""The corner from which volumes are taken."""


def search(
    judge: Judge, kind: str, options: dict[str, Any], seed: int, trials: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each trial scored, shape (trials, goals), and its true shares, (trials, tasks)."""
    world = World(seed)
    judge = judge.against({"base": world.references()[0]})
    domain = Domain([Gene(f"weight_{i}") for i in range(GENES)])
    optimizer = build_optimizer(OptimizerConfig(kind=kind, **options), domain, seed)
    scored, true = [], []
    for index in range(trials):
        proposal = optimizer.ask(index)
        scores = judge.scores(world.answers(proposal.genome))
        optimizer.tell(proposal, scores)
        scored.append(scores.objectives)
        true.append(world.chances(proposal.genome).mean(axis=1))
    return np.array(scored), np.array(true)


def curve(kind: str, options: dict[str, Any], seed: int, trials: int) -> NDArray[np.float64]:
    """After each trial, the true score of the best by search."""
    scored, true = search(MEAN, kind, options, seed, trials)
    best = [int(np.argmax(scored[: trial + 1, 0])) for trial in range(trials)]
    return np.asarray(true.mean(axis=1)[best])


def volume(kind: str, options: dict[str, Any], seed: int, trials: int) -> float:
    """What the front by search truly dominates."""
    scored, true = search(PARETO, kind, options, seed, trials)
    return pareto.hypervolume(true[pareto.front(scored)], REFERENCE)


def reached(of: NDArray[np.float64], target: float) -> float:
    there = np.flatnonzero(of >= target)
    return float(there[0] + 1) if len(there) else np.inf


def screening(arguments: argparse.Namespace) -> Table:
    table = Table(title=f"mean of three tasks, {arguments.trials} trials, {arguments.seeds} seeds")
    for column in ("optimizer", "screen", "true score", "better in", "trials needed, share"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for kind in arguments.optimizers:
        plain: list[NDArray[np.float64]] = []
        for among in arguments.screen:
            runs = [
                curve(kind, {"screen": among}, seed, arguments.trials)
                for seed in range(arguments.seeds)
            ]
            plain = plain or runs
            final = np.array([run[-1] for run in runs])
            pairs = list(zip(runs, plain, strict=True))
            shares = [reached(ours, b[-1] - NEAR) / reached(b, b[-1] - NEAR) for ours, b in pairs]
            wins = sum(ours[-1] > b[-1] for ours, b in pairs)
            error = final.std(ddof=1) / np.sqrt(len(final))
            table.add_row(
                kind,
                str(among),
                f"{final.mean():.4f} ± {error:.4f}",
                f"{wins} of {len(runs)}",
                f"{np.median(shares):.2f}",
            )
    return table


def fronts(arguments: argparse.Namespace) -> Table:
    table = Table(title=f"front of three tasks, {arguments.trials} trials, {arguments.seeds} seeds")
    table.add_column("optimizer")
    table.add_column("volume", justify="right")
    arms: list[tuple[str, dict[str, Any]]] = [
        ("map", {}),
        ("map", {"bayesian": True}),
        ("map", {"interactions": False}),
        ("nsga3", {}),
        ("nsga3", {"screen": 4}),
        ("random", {}),
    ]
    for kind, options in arms:
        found = np.array(
            [volume(kind, options, seed, arguments.trials) for seed in range(arguments.seeds)]
        )
        error = found.std(ddof=1) / np.sqrt(len(found))
        label = f"{kind} {options}" if options else kind
        table.add_row(label, f"{found.mean():.4f} ± {error:.4f}")
    return table


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--screen", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--optimizers", nargs="+", default=["cma", "m2n2", "de", "random"])
    arguments = parser.parse_args()
    console = Console()
    console.print(screening(arguments))
    console.print(fronts(arguments))


if __name__ == "__main__":
    main()
