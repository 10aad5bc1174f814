"""The full and the diagonal covariance of `cma`: what they cost, and how far they come.

Run `python benchmarks/covariance.py`. First the CPU milliseconds of ask and tell in three
populations, for continuous genes and for such of which a fifth are choices and whole numbers. Then
the loss of the best of 1,000 trials of 100 genes, the geometric mean of three seeds: a sphere, an
ellipsoid whose axes are the genes (steepness 1 to 100), and a rotated one. From these the number
was chosen above which `cma` keeps the diagonal (`SEPARABLE_ABOVE`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from evomerge.judging.scores import Scores
from evomerge.search.optimizers import cma
from evomerge.search.spaces.genes import Domain, Gene, Genome

FORMS = {"full": 10**9, "diagonal": 0}
"""The form → the number of genes above which it is the diagonal."""
SEEDS = range(3)


def continuous(count: int) -> Domain:
    return Domain([Gene(f"w{i}") for i in range(count)])


def levelled(count: int) -> Domain:
    tenth = max(1, count // 10)
    choices = [
        Gene(f"m{i}", kind="categorical", choices=("linear", "ties", "dare")) for i in range(tenth)
    ]
    whole = [Gene(f"r{i}", 0, 7, kind="int") for i in range(tenth)]
    return Domain([*choices, *whole, *(Gene(f"w{i}") for i in range(count - 2 * tenth))])


@contextmanager
def form(name: str) -> Iterator[None]:
    before, cma.SEPARABLE_ABOVE = cma.SEPARABLE_ABOVE, FORMS[name]
    try:
        yield
    finally:
        cma.SEPARABLE_ABOVE = before


def losses(count: int) -> dict[str, Callable[[Genome], float]]:
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((count, count)))
    steep = 10 ** np.linspace(0, 2, count)
    return {
        "sphere": lambda genome: float(np.mean((genome - 0.7) ** 2)),
        "ellipsoid": lambda genome: float(np.mean(steep * (genome - 0.7) ** 2)),
        "rotated ellipsoid": lambda genome: float(
            np.mean(steep * (rotation @ (genome - 0.7)) ** 2)
        ),
    }


def search(optimizer: cma.CmaEs, loss: Callable[[Genome], float], trials: int) -> float:
    """The least loss of so many trials."""
    found = []
    for index in range(trials):
        proposal = optimizer.ask(index)
        found.append(loss(proposal.genome))
        optimizer.tell(proposal, Scores(-found[-1], 0.0, 1))
    return min(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--genes", type=int, nargs="+", default=[10, 30, 100, 200, 400])
    parser.add_argument("--trials", type=int, default=1000, help="of a search of 100 genes")
    asked = parser.parse_args()
    domains = {"continuous": continuous, "with levels": levelled}
    print("ask and tell, CPU ms".ljust(34) + "".join(name.rjust(12) for name in FORMS))
    for kind, domain in domains.items():
        for count in asked.genes:
            cells = []
            for name in FORMS:
                with form(name):
                    optimizer = cma.CmaEs(domain(count), 0)
                    trials = 3 * optimizer._population
                    began = time.process_time()
                    search(optimizer, losses(2)["sphere"], trials)
                    cells.append(1000 * (time.process_time() - began) / trials)
            print(f"{kind}, {count:,} genes".ljust(34) + "".join(f"{c:12.2f}" for c in cells))
    print(f"the least loss of {asked.trials:,} trials, 100 genes")
    for kind, domain in domains.items():
        for goal, loss in losses(100).items():
            cells = []
            for name in FORMS:
                with form(name):
                    best = [search(cma.CmaEs(domain(100), s), loss, asked.trials) for s in SEEDS]
                cells.append(float(np.exp(np.mean(np.log(best)))))
            print(f"{kind}, {goal}".ljust(34) + "".join(f"{cell:12.3g}" for cell in cells))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
