"""M2N2 on handwritten digits: competition, attraction and split points against their ablations.

The experiment of Akiba et al. 2025 (arXiv:2508.16204, section 4.1) with the archives and the
crossover that campaigns use: scikit-learn's 8×8 digits in their own order, the first 80 % to search
on and the last 20 % to test on (other writers, hence the gap), an MLP 64-256-10 as one vector of
19,210 float32 numbers, initialised with N(0, 0.01²), P = 20. Two tables, by starting point:

- `pretrained`: one pair trained on digits 0-4 and 5-9 (Adam 3e-3, 10 full-batch steps), 10,000
  evaluations, crossover alone;
- `scratch`: two random networks, 50,000 evaluations, mutation N(0, 0.01²).

A row is the mean test accuracy, over seeds, of the archive's best member on the search items, with
a 95 % interval (Student's t). As in the authors' code the pretrained pair is the same for all
seeds; `--pairs` trains one for each. Rows are timed one process at a time unless `--jobs` is given.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from cmaes import SepCMA
from sklearn.datasets import load_digits

from evomerge.search.archives import GridArchive, NicheArchive
from evomerge.search.spaces.slerp_recombination import slerp_at

INPUT, HIDDEN, OUTPUT = 64, 256, 10
SIZE = (INPUT + 1) * HIDDEN + (HIDDEN + 1) * OUTPUT
SIGMA = 0.01
POPULATION = 20
BAR_RATE = 1000


@dataclass(frozen=True)
class Row:
    """One algorithm of the table: which parts of M2N2 it has; `kind` names the archive."""

    name: str
    kind: str = "niches"
    alpha: float = 1.0
    attraction: bool = True
    split: bool = True
    crossover: bool = True


TABLES = {
    "pretrained": (
        Row("M2N2"),
        Row("without attraction", attraction=False),
        Row("MAP-Elites", kind="grid"),
        Row("without split-point", split=False),
        Row("GA", alpha=0.0, attraction=False),
    ),
    "scratch": (
        Row("M2N2"),
        Row("CMA-ES", kind="cma"),
        Row("M2N2 without crossover", crossover=False),
        Row("GA without crossover", alpha=0.0, attraction=False, crossover=False),
        Row("GA", alpha=0.0, attraction=False),
        Row("MAP-Elites", kind="grid"),
    ),
}
EVALUATIONS = {"pretrained": 10_000, "scratch": 50_000}


@dataclass(frozen=True)
class Result:
    """One run: accuracies of its best member, and how fast it went."""

    test: float
    search: float
    rate: float


class Digits:
    """The data and the network's forward pass over it."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        edge = int(0.8 * len(images))
        self.search = torch.tensor(images[:edge], dtype=torch.float32), torch.tensor(labels[:edge])
        self.test = torch.tensor(images[edge:], dtype=torch.float32), torch.tensor(labels[edge:])
        self.odd = labels[:edge] % 2 == 1
        self._hidden = torch.empty(edge, HIDDEN)

    def correct(self, network: np.ndarray) -> np.ndarray:
        """Which search images a network of shape (19210,) gets right, float64 0 or 1."""
        images, labels = self.search
        logits = _forward(torch.from_numpy(network), images, self._hidden)
        return (logits.argmax(1) == labels).numpy().astype(np.float64)

    def accuracy(self, network: np.ndarray) -> float:
        """Accuracy on the test images."""
        images, labels = self.test
        logits = _forward(torch.from_numpy(network), images, torch.empty(len(images), HIDDEN))
        return float((logits.argmax(1) == labels).float().mean())

    def pair(self, seed: int) -> list[np.ndarray]:
        """Two networks, trained on digits 0-4 and 5-9."""
        images, labels = self.search
        return [
            _train(start, images[part], labels[part])
            for start, part in zip(random_pair(seed), (labels < 5, labels >= 5), strict=True)
        ]


def random_pair(seed: int) -> list[np.ndarray]:
    draws = np.random.default_rng([seed, 1]).normal(0, SIGMA, (2, SIZE))
    return list(draws.astype(np.float32))


def _layers(network: torch.Tensor) -> tuple[torch.Tensor, ...]:
    sizes = [INPUT * HIDDEN, HIDDEN, HIDDEN * OUTPUT, OUTPUT]
    w1, b1, w2, b2 = network.split(sizes)
    return w1.view(INPUT, HIDDEN), b1, w2.view(HIDDEN, OUTPUT), b2


def _forward(network: torch.Tensor, images: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    w1, b1, w2, b2 = _layers(network)
    torch.addmm(b1, images, w1, out=hidden)
    return torch.addmm(b2, hidden.relu_(), w2)


def _train(start: np.ndarray, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    network = torch.tensor(start, requires_grad=True)
    adam = torch.optim.Adam([network], lr=3e-3)
    for _ in range(10):
        w1, b1, w2, b2 = _layers(network)
        logits = (images @ w1 + b1).relu() @ w2 + b2
        adam.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        adam.step()
    return network.detach().numpy().copy()


def child(
    row: Row, a: np.ndarray, b: np.ndarray, rng: np.random.Generator, sigma: float
) -> np.ndarray:
    """The child of two networks under a row's operators."""
    made = a
    if row.crossover:
        split = int(rng.integers(SIZE)) if row.split else SIZE
        made = slerp_at(a, b, split, float(rng.random()))
    if sigma:
        made = made + rng.standard_normal(SIZE, dtype=np.float32) * np.float32(sigma)
    return made


def niches(row: Row, digits: Digits, first: list[np.ndarray], evaluations: int, seed: int,
           sigma: float) -> np.ndarray:  # fmt: skip
    """The best member after so many evaluations of M2N2 or one of its ablations."""
    rng = np.random.default_rng([seed, 2])
    archive = NicheArchive(POPULATION, row.alpha)
    members = np.zeros((POPULATION, SIZE), np.float32)

    def offer(network: np.ndarray) -> None:
        slot = archive.offer(digits.correct(network))
        if slot is not None:
            members[slot] = network

    for network in first:
        offer(network)
    for _ in range(evaluations):
        a, b = archive.parents(rng, attraction=row.attraction)
        offer(child(row, members[a], members[b], rng, sigma))
    return members[int(archive.scores.sum(axis=1).argmax())]


def grid(row: Row, digits: Digits, first: list[np.ndarray], evaluations: int, seed: int,
         sigma: float) -> np.ndarray:  # fmt: skip
    """The best elite of MAP-Elites, 10×10 on the accuracies on odd and even digits."""
    rng = np.random.default_rng([seed, 2])
    archive = GridArchive((10, 10), ((0, 1), (0, 1)))
    members = np.zeros((100, SIZE), np.float32)

    def offer(network: np.ndarray) -> None:
        correct = digits.correct(network)
        measures = np.array([correct[digits.odd].mean(), correct[~digits.odd].mean()])
        slot = archive.offer(measures, float(correct.mean()))
        if slot is not None:
            members[slot] = network

    for network in first:
        offer(network)
    for _ in range(evaluations):
        a, b = archive.parents(rng, by_quality=True)
        offer(child(row, members[a], members[b], rng, sigma))
    return members[archive.slots[int(archive.quality.argmax())]]


def cma(row: Row, digits: Digits, first: list[np.ndarray], evaluations: int, seed: int,
        sigma: float) -> np.ndarray:  # fmt: skip
    """The best network that separable CMA-ES ever saw, from the first random one."""
    strategy = SepCMA(
        mean=first[0].astype(float), sigma=SIGMA, population_size=POPULATION, seed=seed
    )
    best, top = first[0], -1.0
    for _ in range(evaluations // POPULATION):
        told = []
        for _ in range(POPULATION):
            network = strategy.ask()
            single = network.astype(np.float32)
            accuracy = float(digits.correct(single).mean())
            told.append((network, -accuracy))
            if accuracy > top:
                best, top = single, accuracy
        strategy.tell(told)
    return best


KINDS: dict[str, Callable[..., np.ndarray]] = {"niches": niches, "grid": grid, "cma": cma}


def run(task: tuple[str, Row, int, int, bool]) -> Result:
    """One row with one seed."""
    table, row, seed, evaluations, pairs = task
    torch.set_num_threads(1)
    digits = Digits()
    if table == "pretrained":
        first, sigma = digits.pair(seed if pairs else 42), 0.0
    else:
        first, sigma = random_pair(seed), SIGMA
    started = time.perf_counter()
    with torch.inference_mode():
        best = KINDS[row.kind](row, digits, first, evaluations, seed, sigma)
    seconds = time.perf_counter() - started
    search = float(digits.correct(best).mean())
    return Result(digits.accuracy(best), search, evaluations / seconds)


def measure(options: argparse.Namespace, table: str) -> Iterator[tuple[Row, list[Result]]]:
    """Each row of a table with its results, one per seed."""
    evaluations = options.evaluations or (2_000 if options.quick else EVALUATIONS[table])
    seeds = range(options.seeds or (2 if options.quick else 10))
    rows = [r for r in TABLES[table] if not options.rows or r.name in options.rows]
    tasks = {r: [(table, r, seed, evaluations, options.pairs) for seed in seeds] for r in rows}
    if options.jobs == 1:
        yield from ((row, [run(task) for task in tasks[row]]) for row in rows)
        return
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for row in rows:
            yield row, list(pool.map(run, tasks[row]))


def summary(row: Row, results: list[Result]) -> dict[str, object]:
    """Mean test accuracy with its 95 % interval, and what lies behind it."""
    from scipy.stats import t

    tests = [r.test for r in results]
    mean, half = statistics.fmean(tests), None
    if len(tests) > 1:
        half = t.ppf(0.975, len(tests) - 1) * statistics.stdev(tests) / math.sqrt(len(tests))
    return {
        "name": row.name,
        "test": mean,
        "half_interval": half,
        "search": statistics.fmean(r.search for r in results),
        "evaluations_per_second": statistics.median(r.rate for r in results),
        "runs": [asdict(r) for r in results],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", choices=[*TABLES, "both"], default="both")
    parser.add_argument("--rows", nargs="*", help="only these rows, by name")
    parser.add_argument("--seeds", type=int, help="default 10")
    parser.add_argument("--evaluations", type=int, help="default 10,000 and 50,000")
    parser.add_argument("--pairs", action="store_true", help="another pretrained pair per seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--quick", action="store_true", help="2 seeds, 2,000 evaluations")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    options = parser.parse_args()
    found: dict[str, list[dict[str, object]]] = {}
    for table in TABLES if options.table == "both" else (options.table,):
        found[table] = []
        if not options.json:
            print(f"{table}: mean test accuracy, 95 % interval, search accuracy, evaluations/s")
        for row, results in measure(options, table):
            line = summary(row, results)
            found[table].append(line)
            if not options.json:
                half = line["half_interval"]
                around = "       " if half is None else f"± {half:.3f}"
                print(
                    f"  {row.name:24s} {line['test']:.3f} {around}"
                    f"  {line['search']:.3f}  {line['evaluations_per_second']:6.0f}",
                    flush=True,
                )
    if options.json:
        print(json.dumps(found))
    rates = [line["evaluations_per_second"] for lines in found.values() for line in lines]
    return int(min(rates) < BAR_RATE)


if __name__ == "__main__":
    raise SystemExit(main())
