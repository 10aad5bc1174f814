"""What the optimizers cost: ask plus tell in a long search, and a resume of a long study.

Every own optimizer hears of 5,000 recorded trials of 500 genes; then ask plus tell is timed over
two generations and more, without the storage's write. The bar: a median under 50 ms. `cma (mixed)`
has a fifth of its genes as whole numbers, `cma (screened)` chooses among four. Then a study of
10,000 trials of 500 packed genes on SQLite is opened, its evaluations decoded, and told to each
optimizer, as a resume does. The bar: two minutes. Exits with 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from evomerge.config import OptimizerConfig
from evomerge.judging.scores import Scores
from evomerge.search.optimizers import Optimizer, Proposal, build_optimizer, optimizers
from evomerge.search.spaces.genes import Domain, Gene, distribution
from evomerge.study.record import Evaluation
from evomerge.study.storage_url import sqlite_url
from evomerge.study.study import Study

MEDIAN_BAR = 0.050
RESUME_BAR = 120.0
ITEMS = 100
OPTIONS: dict[str, dict[str, Any]] = {"map": {"interactions": False}}
"""Options of the optimizers that cannot do without: products of genes would be 125,000."""


def domain(dimension: int, *, mixed: bool = False) -> Domain:
    whole = dimension // 5 if mixed else 0
    numbers = [Gene(f"rank_{i}", 0, 7, kind="int") for i in range(whole)]
    return Domain([*numbers, *(Gene(f"weight_{i}") for i in range(dimension - whole))])


def scored(genome: np.ndarray, items: np.ndarray) -> Scores:
    """Items that agree with the genome more or less; two objectives for the fronts."""
    right = (items < 1 - np.mean((genome - 0.6) ** 2)).astype(float)
    value = float(right.mean())
    return Scores(
        value=value,
        se=0.01,
        n=len(items),
        items={"task": right},
        objectives=(value, -float(genome.mean())),
        metrics={"task": value},
    )


def record(dimension: int, trials: int) -> list[tuple[Proposal, Scores]]:
    rng = np.random.default_rng(0)
    items = rng.random(ITEMS)
    genomes = rng.random((trials, dimension))
    return [(Proposal(i, i, g), scored(g, items)) for i, g in enumerate(genomes)]


def candidates(dimension: int) -> dict[str, Optimizer]:
    """Every own optimizer, at its defaults where it has them."""
    own = [name for name in optimizers() if not name.startswith("optuna:")]
    built = {
        name: build_optimizer(
            OptimizerConfig(kind=name, **OPTIONS.get(name, {})), domain(dimension), 0
        )
        for name in own
    }
    mixed = domain(dimension, mixed=True)
    built["cma (mixed)"] = build_optimizer(OptimizerConfig(kind="cma"), mixed, 0)
    screened = OptimizerConfig(kind="cma", screen=4)
    built["cma (screened)"] = build_optimizer(screened, domain(dimension), 0)
    return built


def ask_and_tell(
    optimizer: Optimizer,
    told: list[tuple[Proposal, Scores]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Seconds of each ask plus tell after the record was told."""
    for proposal, scores in told:
        optimizer.tell(proposal, scores)
    items = np.random.default_rng(0).random(ITEMS)
    seconds = []
    for index in range(len(told), len(told) + repeats):
        started = clock()
        proposal = optimizer.ask(index)
        asked = clock()
        scores = scored(proposal.genome, items)
        scored_at = clock()
        optimizer.tell(proposal, scores)
        seconds.append(clock() - scored_at + asked - started)
    return seconds


def write_study(url: str, genes: Domain, told: list[tuple[Proposal, Scores]]) -> None:
    distributions = {gene.name: distribution(gene) for gene in genes.genes}
    with Study.create_or_resume(
        url, "bench", identity={"bench": 1}, campaign={}, genes=distributions
    ) as study:
        for proposal, scores in told:
            study.add(
                Evaluation(
                    split="search",
                    digest=f"{proposal.ask:064x}",
                    recipe={"trial": proposal.ask},
                    value=scores.value,
                    se=scores.se,
                    n=scores.n,
                    scores=scores.items,
                    params=genes.params(proposal.genome),
                    genome=proposal.genome,
                    ask=proposal.ask,
                    tells=proposal.tells,
                )
            )


def open_study(url: str, genes: Domain) -> tuple[float, int]:
    """Seconds to open a study and decode all of it, and how many evaluations that were."""
    distributions = {gene.name: distribution(gene) for gene in genes.genes}
    started = time.perf_counter()
    with Study.create_or_resume(
        url, "bench", identity={"bench": 1}, campaign={}, genes=distributions
    ) as study:
        found = sum(e.genome is not None and e.scores is not None for e in study.evaluations())
    return time.perf_counter() - started, found


def replay(optimizer: Optimizer, told: list[tuple[Proposal, Scores]]) -> float:
    started = time.perf_counter()
    for proposal, scores in told:
        optimizer.tell(proposal, scores)
    return time.perf_counter() - started


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    told = record(arguments.genes, arguments.resume)
    rows: dict[str, dict[str, float]] = {}
    for name, optimizer in candidates(arguments.genes).items():
        if arguments.only and name not in arguments.only:
            continue
        seconds = ask_and_tell(optimizer, told[: arguments.trials], arguments.repeats)
        rows[name] = {"median": statistics.median(seconds), "worst": max(seconds)}
        rows[name]["replay"] = replay(candidates(arguments.genes)[name], told)
    with tempfile.TemporaryDirectory() as folder:
        url = sqlite_url(Path(folder) / "study.db")
        write_study(url, domain(arguments.genes), told)
        opened, found = open_study(url, domain(arguments.genes))
    if found != len(told):
        raise SystemExit(f"{len(told)} trials were written, but {found} read")
    for row in rows.values():
        row["resume"] = opened + row["replay"]
    return {
        "genes": arguments.genes,
        "trials": arguments.trials,
        "resumed_trials": arguments.resume,
        "open": opened,
        "optimizers": rows,
    }


def show(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['genes']} genes; ask + tell at {result['trials']} trials; "
        f"resume of {result['resumed_trials']} (opening alone: {result['open']:.1f} s)"
    )
    for column in ("optimizer", "median ms", "worst ms", "replay s", "resume s"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for name, row in result["optimizers"].items():
        cells = (1000 * row["median"], 1000 * row["worst"], row["replay"], row["resume"])
        table.add_row(name, *(f"{cell:.2f}" for cell in cells))
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--trials", type=int, default=5000, help="told before asks are timed")
    parser.add_argument("--resume", type=int, default=10_000, help="trials of the study resumed")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--only", nargs="*", help="optimizers to measure; default: all")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments)
    print(json.dumps(result)) if arguments.json else show(result)
    rows = result["optimizers"].values()
    missed = [row["median"] > MEDIAN_BAR or row["resume"] > RESUME_BAR for row in rows]
    return int(any(missed))


if __name__ == "__main__":
    raise SystemExit(main())
