"""How often 95 % intervals hold the truth, and a winner that is no better is called better.

Simulated answers: no model is needed. Scores of one recipe and differences of two are drawn at
abilities from .02 to .98, over one to five tasks of unequal size and weight, and the share of
intervals that hold the true value is counted. Then campaigns are drawn whose candidates are all
exactly as good as the parent: the best ten on search go to select, the best there goes to test, and
the campaign has its verdict.

    python benchmarks/coverage.py

prints a row for each number of items and tasks, with the least and the mean coverage over the
abilities, and the shares of campaigns whose winner's interval lies above 0 and whose verdict is
that it wins. Rows that are not within the bounds of docs/intervals.md are marked `*`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from evomerge.judging.intervals import Z, mean_end, square_and_add, wilson
from evomerge.judging.objectives import find_objective
from evomerge.judging.paired_tests import compare, difference_end, won_and_lost
from evomerge.judging.scores import Judge
from evomerge.results.evidence import Evidence, Rival
from evomerge.results.verdict import verdict_on
from evomerge.study.record import Evaluation

Values = NDArray[np.float64]
ITEMS = (20, 50, 200)
SIZES = (1, 10, 2.5, 0.5, 4)
"""Items of the first to fifth task, as multiples of the row's number; at most `LARGEST`."""
LARGEST = 400
WEIGHTS = (5, 1, 0.5, 1, 2)
ABILITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
DIFFERING = 0.3
"""Share of the items on which exactly one of two recipes is right."""
FINALISTS = 10
LEAST, MEAN, WRONG = 0.90, (0.94, 0.97), 0.05
ENDS = np.array([-Z, Z])


def tasks(items: int, count: int) -> tuple[list[int], Values]:
    """Sizes and shares of weight of the first `count` tasks."""
    weights = np.array(WEIGHTS[:count], dtype=float)
    return [min(LARGEST, int(items * size)) for size in SIZES[:count]], weights / weights.sum()


@cache
def difference_ends(won: int, lost: int, n: int) -> Values:
    return np.interp(ENDS, *won_and_lost(won, lost, n))


def of_differences(drawn: Sequence[NDArray[np.int64]], sizes: Sequence[int], weights: Values):
    """The values, lower and upper ends of weighted differences; `drawn`: (n, won | lost) a task."""
    value, deviations = np.zeros(len(drawn[0])), []
    for counts, size, weight in zip(drawn, sizes, weights, strict=True):
        distinct, places = np.unique(counts, axis=0, return_inverse=True)
        ends = np.array([difference_ends(int(won), int(lost), size) for won, lost in distinct])
        gaps = (counts[:, 0] - counts[:, 1]) / size
        value = value + weight * gaps
        deviations.append(weight * (ends[places.ravel()].T - gaps))
    return value, *square_and_add(value, np.stack(deviations, axis=-1))


def holding(low: Values, high: Values, truth: float) -> float:
    """Share of intervals that hold the truth, their ends included."""
    return float(np.mean((low <= truth + 1e-12) & (truth <= high + 1e-12)))


def means(rng, simulations: int, items: int, count: int, spread: float) -> list[float]:
    """Coverage at each ability; the tasks' abilities lie `spread` apart on the logistic scale."""
    sizes, weights = tasks(items, count)
    found = []
    for ability in ABILITIES:
        apart = spread * (np.arange(count) - (count - 1) / 2)
        chances = 1 / (1 + (1 / ability - 1) * np.exp(-apart))
        value, deviations = 0.0, []
        for size, weight, chance in zip(sizes, weights, chances, strict=True):
            mean = rng.binomial(size, chance, simulations) / size
            value = value + weight * mean
            deviations.append(weight * (wilson(mean, size, ENDS[:, None]) - mean))
        low, high = square_and_add(value, np.stack(deviations, axis=-1))
        found.append(holding(low, high, float(weights @ chances)))
    return found


def bootstrap(items: int) -> list[float]:
    """Exact coverage of the percentile bootstrap of one task, for comparison."""
    right = np.arange(items + 1)
    low, high = (binom.ppf(q, items, right / items) / items for q in (0.025, 0.975))
    return [
        float(binom.pmf(right, items, p)[(low <= p + 1e-12) & (p <= high + 1e-12)].sum())
        for p in ABILITIES
    ]


def won_shares(rng, simulations: int, items: int, count: int) -> list[float]:
    """Coverage where two recipes differ on `DIFFERING` of the items, of which A wins a share p."""
    return differences(
        rng, simulations, items, count, [(DIFFERING * p, DIFFERING * (1 - p)) for p in ABILITIES]
    )


def same_ability(rng, simulations: int, items: int, count: int) -> list[float]:
    """Coverage where two recipes are right with the same chance p, each by itself."""
    return differences(rng, simulations, items, count, [(p * (1 - p),) * 2 for p in ABILITIES])


def differences(
    rng, simulations: int, items: int, count: int, chances: Sequence[tuple[float, float]]
) -> list[float]:
    """Coverage of differences; `chances`: of an item to be won, and to be lost."""
    sizes, weights = tasks(items, count)
    found = []
    for won, lost in chances:
        drawn = [rng.multinomial(n, (won, lost, 1 - won - lost), simulations) for n in sizes]
        _, low, high = of_differences([counts[:, :2] for counts in drawn], sizes, weights)
        found.append(holding(low, high, won - lost))
    return found


def campaigns(rng, simulations: int, items: int, candidates: int, ability: float) -> Values:
    """How often the winner is called better, though it never is.

    Three tasks; a candidate answers half of the items as the parent does, the others by itself.

    Returns:
        Shares of campaigns: the interval above 0 on search, on select and on test, and the verdict
        `wins`.
    """
    sizes, weights = tasks(items, 3)
    chance = ability * (1 - ability) / 2

    def draw(count: int) -> list[NDArray[np.int64]]:
        shape = (simulations, count)
        return [rng.multinomial(n, (chance, chance, 1 - 2 * chance), shape)[..., :2] for n in sizes]

    def leads(drawn: Sequence[NDArray[np.int64]]) -> Values:
        return sum(
            weight * (counts[..., 0] - counts[..., 1]) / size
            for counts, size, weight in zip(drawn, sizes, weights, strict=True)
        )

    # 1. the best ten on search, and the best of them on select
    search = draw(candidates)
    top = np.argsort(-leads(search), axis=1, kind="stable")[:, :FINALISTS]
    select = draw(FINALISTS)
    place = leads(select).argmax(axis=1)
    winner = np.take_along_axis(top, place[:, None], axis=1)[:, 0]
    # 2. the winner's items on all three splits: is its interval above 0?
    each = np.arange(simulations)
    chosen = [
        [counts[each, at] for counts in drawn]
        for drawn, at in ((search, winner), (select, place), (draw(1), 0 * place))
    ]
    better = [np.mean(of_differences(counts, sizes, weights)[1] > 0) for counts in chosen]
    # 3. the campaign's verdict
    judge = Judge(find_objective("mean", "coverage"), list("abc"), weights, np.ones(3))
    wins = [
        verdict(judge, *([counts[one] for counts in split] for split in chosen[1:]), sizes)
        == "wins"
        for one in each
    ]
    return np.array([*better, np.mean(wins)])


def verdict(judge: Judge, select: Sequence[Values], test: Sequence[Values], sizes) -> str:
    """The kind of verdict on a winner with these items won and lost against the one parent."""
    measured, named = {}, list(zip(judge.tasks, sizes, strict=True))
    for split, drawn in (("select", select), ("test", test)):
        ours, theirs = ({t: np.ones(n) for t, n in named} for _ in range(2))
        for task, (won, lost) in zip(judge.tasks, drawn, strict=True):
            theirs[task][:won], ours[task][won : won + lost] = 0, 0
        for digest, items in (("merge", ours), ("parent", theirs)):
            measured[digest, split] = Evaluation(split, digest, {}, value=0.0, scores=items)

    def lead(ours: str, theirs: str, split: str) -> dict[str, float]:
        return vars(compare(judge, measured[ours, split].scores, measured[theirs, split].scores))

    judges = {"select": judge, "test": judge}
    evidence = Evidence(judges, measured, [Rival("parent", "parent", "parent")], lead)
    found = verdict_on(evidence, measured["merge", "test"], best=True, concluded=True)
    return "" if found is None else found.kind


OTHER: dict[str, tuple[Callable[..., Values], float]] = {
    "closeness, mean .5": (lambda rng, n: rng.beta(2, 2, n), 0.5),
    "closeness, mean .9": (lambda rng, n: rng.beta(3.6, 0.4, n), 0.9),
    "closeness, mean .98": (lambda rng, n: rng.beta(1.96, 0.04, n), 0.98),
    "tokens, log-normal": (lambda rng, n: 100 * rng.lognormal(0, 0.7, n), 100 * np.exp(0.245)),
}
"""Scores that are not right or wrong: how they are drawn, and their mean."""


def other_items(rng, simulations: int, items: int, name: str) -> tuple[float, float]:
    """Coverage of means, and of differences of equals that share .7 of their answers."""
    draw, truth = OTHER[name]
    single, paired = [], []
    for _ in range(simulations):
        ours, theirs = draw(rng, items), draw(rng, items)
        theirs = np.where(rng.random(items) < 0.7, ours, theirs)
        single.append(mean_end(ours, ENDS))
        paired.append(difference_end(np.stack([ours, theirs], axis=-1), ENDS))
    return holding(*np.array(single).T, truth), holding(*np.array(paired).T, 0.0)


def shown(name: str, covered: Sequence[float], beside: str = "") -> None:
    least, mean = min(covered), float(np.mean(covered))
    within = least >= LEAST and MEAN[0] <= round(mean, 3) <= MEAN[1]
    mark = "" if within else "*"
    print(f"{name:<34} {least:>7.3f} {mean:>7.3f}  {beside}{mark}".rstrip(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--simulations", type=int, default=2000, help="of each cell")
    parser.add_argument("--items", type=int, nargs="+", default=ITEMS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, many = np.random.default_rng(args.seed), args.simulations
    print(f"{'means of one recipe':<34}   least    mean  percentile bootstrap")
    for items in args.items:
        for count in range(1, 6):
            before = bootstrap(items) if count == 1 else []
            beside = f"{min(before):>7.3f} {np.mean(before):>7.3f}" if before else ""
            shown(f"{items} items, tasks: {count}", means(rng, many, items, count, 0.0), beside)
    print("\nabilities a factor e apart in odds")
    for items in args.items:
        for count in range(2, 6):
            shown(f"{items} items, tasks: {count}", means(rng, many, items, count, 1.0))
    for title, coverage in (
        (f"differences, on {DIFFERING} of the items", won_shares),
        ("differences, of equal abilities", same_ability),
    ):
        print(f"\n{title}")
        for items in args.items:
            for count in range(1, 6):
                shown(f"{items} items, tasks: {count}", coverage(rng, many, items, count))
    print("\nitems that are not right or wrong, coverage:   mean   difference")
    for name in OTHER:
        for items in args.items:
            single, paired = other_items(rng, many, items, name)
            print(f"{name + f', {items} items':<46} {single:>6.3f} {paired:>8.3f}", flush=True)
    print(
        "\n'better than the parent' of a winner that is as good, chosen among candidates\n"
        f"{'':<34}  search  select    test  verdict"
    )
    for items in args.items:
        for candidates in (10, 200):
            for ability in (0.5, 0.9):
                better = campaigns(rng, many, items, candidates, ability)
                mark = "" if max(better[2:]) <= WRONG else "  *"
                name = f"{items} items, {candidates} candidates, p {ability}"
                print(f"{name:<34} " + " ".join(f"{rate:>7.3f}" for rate in better) + mark)


if __name__ == "__main__":
    main()
