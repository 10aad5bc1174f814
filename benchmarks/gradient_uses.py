"""What gradients give a search beside its beginning, on made-up merges.

    python benchmarks/gradient_uses.py

A made-up merge has 28 or 85 genes and 240 items, whose margins are smooth in the genes and depend
on them very unequally (`tests/helpers/logistic.py`); its score is the share of items that are
right. Each comparison is of pairs with one seed, and prints both means and the mean difference with
its standard error:

- `cma` that begins at the end of a gradient descent with equal steps, and with the diagonal of
  `search.descent.scales`;
- the same, screened, by scores alone and by what the descent's gradients tell of the loss too;
- winners of 100 trials of `cma`, as they are and polished where that is better on 96 items more, on
  4,000 items that nothing has seen.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from domains import build, run
from logistic import Logistic

from evomerge.judging.scores import Scores
from evomerge.search.descent import scales
from evomerge.search.spaces.genes import Domain, Gene
from evomerge.search.surrogates.loss_slopes import LossSlopes

SEARCH, SELECT = slice(240), slice(240, 336)


def domain_at(start, merge):
    genes = [Gene(f"g{index}") for index in range(merge.genes)]
    return Domain(genes, starts=() if start is None else (start,))


def best_of(domain, seed, trials, score, **options):
    """The best genome of a search, and its score."""
    optimizer = build("cma", domain, seed, **options)
    optimizer.begin([])
    found = [(s.value, p.genome) for p, s in run(optimizer, [], trials, score) if s]
    return max(found, key=lambda one: one[0])


def scaled(seed, genes, trials, scaled):
    merge = Logistic(seed, genes)
    record = merge.descent()
    end = np.array(record.best)
    domain = domain_at(end, merge)
    domain.scales = {end.tobytes(): scales(record)} if scaled else {}
    return best_of(domain, seed, trials + 1, merge.scores)[0]


def screened(seed, genes, trials, told):
    merge = Logistic(seed, genes)
    record = merge.descent()
    end = np.array(record.best)
    domain = domain_at(end, merge)
    domain.scales = {end.tobytes(): scales(record)}
    if told:
        domain.loss = LossSlopes.fit(round(record.slopes[0][0]), record.slopes[1:])
    return best_of(domain, seed, trials + 1, merge.scores, screen=4)[0]


def polished(seed, genes, begun, polish):
    merge = Logistic(seed, genes, items=4336)

    def share(genome, items):
        return float((merge.margins(genome, items) > 0).mean())

    start = np.array(merge.descent(within=240).best) if begun else None
    score = lambda genome: Scores(share(genome, SEARCH), 0.0, 240)  # noqa: E731
    winner = best_of(domain_at(start, merge), seed, 100, score)[1]
    if polish:
        end = np.array(merge.descent(winner, steps=20, rate=0.02, within=240).best)
        winner = end if share(end, SELECT) > share(winner, SELECT) else winner
    return share(winner, slice(336, None))


def compared(what, measure, seeds):
    """Print both means, and the mean of the differences with its standard error."""
    pairs = np.array([[measure(seed, use) for use in (False, True)] for seed in range(seeds)])
    gains = pairs[:, 1] - pairs[:, 0]
    error = gains.std(ddof=1) / len(gains) ** 0.5
    without, with_it = pairs.mean(axis=0)
    print(f"{what:60}{without:8.3f}{with_it:8.3f}{gains.mean():9.4f} ± {error:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=24)
    seeds = parser.parse_args().seeds
    print(f"{'':60}{'without':>8}{'with':>8}{'gain':>9}")
    for genes in (28, 85):
        for trials in (60, 150):
            what = f"scaled, {genes} genes, {trials} trials"
            compared(what, lambda s, u, g=genes, t=trials: scaled(s, g, t, u), seeds)
        for begun in (False, True):
            where = "begun by a gradient" if begun else "begun anywhere"
            what = f"polished, {genes} genes, {where}"
            compared(what, lambda s, u, g=genes, b=begun: polished(s, g, b, u), seeds)
        what = f"screened by gradients too, {genes} genes, 80 trials"
        compared(what, lambda s, u, g=genes: screened(s, g, 80, u), seeds)


if __name__ == "__main__":
    main()
