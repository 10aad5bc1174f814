"""What gradient descents before the search save on the quickstart's models.

    python benchmarks/gradients.py --seeds 5 --trials 400

runs, for every seed, the quickstart's campaign with plain cma, and the same campaign that begins
with a gradient descent from the uniform merge and then tries a few candidates. It prints the search
items that each was asked for (a document of a step as three, one held back as one) until its best
score by search reached what plain cma had at the end of its budget, the ratio of the two, and the
score on the test split of the winner that each chose on select. Campaigns go on where they stopped.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.results.progress import split_size
from evomerge.results.results import Results
from evomerge.study.record import Evaluation
from evomerge.study.run_folder import open_run

CAMPAIGN = Path(__file__).parents[1] / "search_spaces" / "quickstart" / "quickstart.yaml"


class Quiet:
    """A listener that says nothing."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Say nothing."""

    def recorded(self, evaluation: Evaluation) -> None:
        """Say nothing."""

    def said(self, message: str) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Found:
    """A run's best by search after each trial, and what it had cost by then.

    Attributes:
        spent: items, descents included.
        best: the best score by search so far.
        test: the winner's score on test.
        parent: the best parent's there.
    """

    spent: list[int]
    best: list[float]
    test: float
    parent: float

    def reached(self, score: float) -> int | None:
        """Items until `score`; None if never."""
        pairs = zip(self.spent, self.best, strict=True)
        return next((spent for spent, best in pairs if best >= score), None)


def run(folder: Path, *changes: str) -> Found:
    """Run the campaign with these changes, or go on with it."""
    setup = prepare(load_campaign(CAMPAIGN, changes))
    with open_campaign(setup, folder, Quiet()) as campaign:
        campaign.run(None)
    _, study = open_run(folder)
    with study:
        whole = split_size(study, "search")
        total, best, spent, values = sum(d.items for d in study.descents()), 0.0, [], []
        for one in study.evaluations():
            if one.optimizers_own:
                total += one.cost(whole)
                best = max(best, one.value or 0.0)
                spent.append(total)
                values.append(best)
        shown = Results(study).best()
    parents = [scores["test"]["mean"] for scores in shown["parents"].values()]
    return Found(spent, values, shown["scores"]["test"]["mean"], max(parents))


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=150, help="plain cma's budget")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/gradients"))
    given = parser.parse_args()
    descent = f"initial=[{{gradient: {{steps: {given.steps}}}}}]"
    print("seed  plain: items, search, test   gradient: items, search, test   ratio  best parent")
    ratios, differences = [], []
    for seed in range(given.seeds):
        plain = run(
            given.out / f"plain-{seed}",
            f"budget={{trials: {given.trials}}}",
            f"seed={seed}",
            "optimizer.plain=true",
        )
        begun = run(given.out / f"gradient-{seed}", "budget={trials: 5}", f"seed={seed}", descent)
        there, here = plain.reached(plain.best[-1]), begun.reached(plain.best[-1])
        assert there is not None
        ratio = "never" if here is None else f"1/{there / here:.1f}"
        ratios.append(0.0 if here is None else there / here)
        differences.append(begun.test - plain.test)
        print(
            f"{seed:4}  {there:12,} {plain.best[-1]:7.3f} {plain.test:6.3f}   "
            f"{here or begun.spent[-1]:15,} {begun.best[-1]:7.3f} {begun.test:6.3f}   "
            f"{ratio:>6} {begun.parent:8.3f}",
            flush=True,
        )
    print(
        f"median ratio 1/{statistics.median(ratios):.1f}; gradient's test score less plain cma's: "
        f"median {statistics.median(differences):+.3f}"
    )


if __name__ == "__main__":
    main()
