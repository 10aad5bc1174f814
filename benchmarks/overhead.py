"""How much of a campaign's time is not materializing and scoring.

Runs the quickstart campaign with TIES and two genes per layer and expert (32 genes, all of them
real Optuna parameters) in a temporary folder, and prints the share of the search's wall time that
is spent neither on writing weights nor on scoring: proposing, decoding, summing up, recording.
The bar: under 15 % for 200 trials. Exits with 1 when it is missed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from evomerge.campaign.open import open_campaign
from evomerge.campaign.setup import prepare
from evomerge.config import load_campaign
from evomerge.study.record import Evaluation

QUICKSTART = Path(__file__).parents[1] / "search_spaces" / "quickstart" / "quickstart.yaml"
BAR = 0.15
BARE = ["initial=[]", "fitness.rungs=[all]", "optimizer.screen=1"]
"""Without the gradient, the rungs and the screening that a search has by default."""
SPACE = "space.weights={method: ties, genes: {weight: [0, 1.5], density: [0.2, 1]}}"


class SearchClock:
    """Listens to a campaign: wall time of the search phase, and the workers' part of it."""

    def __init__(self) -> None:
        self.phase_name, self.started = "", 0.0
        self.wall, self.working = 0.0, 0.0

    def on_record(self, evaluations: Iterable[Evaluation]) -> None:
        """Nothing: the run is new."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Start the clock with the search."""
        self.phase_name, self.started = name, time.perf_counter()

    def recorded(self, evaluation: Evaluation) -> None:
        """Stop the clock at the latest trial."""
        if self.phase_name == "search":
            self.wall = time.perf_counter() - self.started
            self.working += sum(evaluation.seconds.values())

    def said(self, message: str) -> None:
        """Nothing."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=200)
    trials = parser.parse_args().trials
    setup = prepare(load_campaign(QUICKSTART, [SPACE, *BARE, f"budget.trials={trials}"]))
    clock = SearchClock()
    with (
        tempfile.TemporaryDirectory() as folder,
        open_campaign(setup, Path(folder), clock) as campaign,
    ):
        campaign.run()
    share = 1 - clock.working / clock.wall
    each = 1000 * (clock.wall - clock.working) / trials
    print(f"{trials} trials, {setup.space.dimension} genes: {clock.wall:.1f} s of search")
    print(f"materializing and scoring: {clock.working:.1f} s; the rest: {each:.1f} ms a trial")
    print(f"overhead: {share:.1%} (bar: {BAR:.0%})")
    return int(share > BAR)


if __name__ == "__main__":
    raise SystemExit(main())
