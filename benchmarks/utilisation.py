"""Whether one driver keeps 64 workers busy, and what it spends on a trial.

The real campaign loop and a real study on disk drive simulated workers: the quickstart campaign
with TIES (32 genes), evaluations of heavy-tailed lengths (Pareto, shape 1.5, 30 s in the mean: half
of them are done after 16 s, one in a hundred takes more than 215; on a rung in proportion to its
items, beside a tenth for writing the recipe), scores that depend on the recipe. Time is virtual
where workers work and real where the driver does: as long as it proposes, decodes, judges and
records, they wait.

Prints, without rungs and with them, the workers' utilisation from the first proposal of the search
to the last (after which there is nothing left to give them), and the driver's own time for a trial,
the storage's writes apart. The bars: .95, and 20 ms. Exits with 1 when one is missed.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from overhead import BARE, QUICKSTART, SPACE

from evomerge.campaign.loop import Campaign
from evomerge.campaign.open import open_study
from evomerge.campaign.setup import Setup, prepare
from evomerge.config import load_campaign
from evomerge.study.record import Evaluation
from evomerge.study.study import Study
from evomerge.workers.job import Event, Job, Outcome
from evomerge.workers.worker import Measurement

SHAPE = 1.5
WRITING = 0.1
BUSY, OWN = 0.95, 0.020
CLOCK = time.perf_counter


class SimulatedWorkers:
    """An executor whose workers work in virtual time.

    Attributes:
        busy: (start, end) of each job, in virtual seconds.
        proposed: the place of the last job whose recipe was new: further rungs are not.
    """

    isolated = True

    def __init__(self, setup: Setup, workers: int, mean: float, seed: int) -> None:
        """`mean`: seconds of an evaluation on all items of the search split."""
        self.workers = workers
        self.busy: list[tuple[float, float]] = []
        self.proposed = 0
        self._items = setup.items
        self._whole = sum(map(len, setup.items["search"].values()))
        self._least = mean * (SHAPE - 1) / SHAPE
        self._rng = np.random.default_rng(seed)
        self._written: set[str] = set()
        self._jobs: list[tuple[float, int, Job]] = []
        self._order = itertools.count()
        self._skipped = -CLOCK()

    @property
    def now(self) -> float:
        """Virtual seconds: real ones, and those that were skipped."""
        return CLOCK() + self._skipped

    @property
    def free(self) -> int:
        """How many have no job; one whose job has ended is free when the driver has heard of it."""
        return self.workers - len(self._jobs)

    def submit(self, job: Job) -> None:
        """The job ends after a random time."""
        share = (1 - WRITING) * self._count(job) / self._whole
        if job.recipe.digest not in self._written:
            self._written.add(job.recipe.digest)
            self.proposed = len(self.busy)
            share += WRITING
        end = self.now + share * self._least * (1 + self._rng.pareto(SHAPE))
        self.busy.append((self.now, end))
        heapq.heappush(self._jobs, (end, next(self._order), job))

    def wait(self) -> Outcome:
        """The job that ends first; its time comes at once."""
        end, _, job = heapq.heappop(self._jobs)
        self._skipped += max(0.0, end - self.now)
        wanted = self._items[job.split] if job.items is None else job.items
        rng = np.random.default_rng(int(job.recipe.digest[:8], 16))
        given = [v.values() for merge in job.recipe.merges for v in merge.experts.values()]
        chance = np.exp(-np.mean((np.array([0.0, *itertools.chain(*given)]) - 0.7) ** 2))
        scores = {
            task: (rng.random(len(ids)) < chance).astype(float) for task, ids in wanted.items()
        }
        return Outcome(job, Measurement(scores, {"materialize": 0.0, "score": 0.0}))

    def drain_events(self) -> list[Event]:
        """Nothing happens to them."""
        return []

    def close(self) -> None:
        """Nothing to let go of."""

    def _count(self, job: Job) -> int:
        wanted = self._items[job.split] if job.items is None else job.items
        return sum(map(len, wanted.values()))

    def utilisation(self, begin: int) -> float:
        """The share of the workers' time that they worked, from the job `begin` to the last
        proposal.
        """
        spans = np.array(self.busy)
        first, last = spans[begin, 0], spans[self.proposed, 0]
        worked = np.clip(spans[:, 1], first, last) - np.clip(spans[:, 0], first, last)
        return float(worked.sum() / (self.workers * (last - first)))


class Search:
    """Listens for the search: where it begins and ends, in trials, jobs and real seconds."""

    def __init__(self, executor: SimulatedWorkers) -> None:
        self._executor = executor
        self.first_job = self.last_job = self.trials = 0
        self.began = self.ended = 0.0
        self._on = False

    def on_record(self, evaluations: Iterable[Evaluation]) -> None:
        """Nothing: the run is new."""

    def phase(self, name: str, done: int, total: int) -> None:
        """The search begins, or is over."""
        if self._on:
            self.ended, self.last_job = CLOCK(), len(self._executor.busy)
        self._on = name == "search"
        if self._on:
            self.began, self.first_job = CLOCK(), len(self._executor.busy)

    def recorded(self, evaluation: Evaluation) -> None:
        """A trial more."""
        self.trials += self._on

    def said(self, message: str) -> None:
        """Nothing."""


@contextmanager
def writes_timed(study: Study) -> Iterator[list[float]]:
    """When the study's writes began and how long each took, in seconds."""
    spans: list[tuple[float, float]] = []
    for name in ("add", "mark", "set_note"):
        setattr(study, name, _timed(getattr(study, name), spans))
    yield spans


def _timed(function, spans):
    def timed(*arguments):
        began = CLOCK()
        try:
            return function(*arguments)
        finally:
            spans.append((began, CLOCK() - began))

    return timed


class Measured(NamedTuple):
    """Utilisation, and seconds for a trial, the driver's own and the storage's writes."""

    busy: float
    own: float
    storage: float


def measure(overrides: list[str], trials: int, workers: int, mean: float) -> Measured:
    """Search with simulated workers whose evaluations take `mean` seconds in the mean."""
    given = [SPACE, *BARE, f"budget.trials={trials}", *overrides]
    setup = prepare(load_campaign(QUICKSTART, given))
    executor = SimulatedWorkers(setup, workers, mean, seed=0)
    search = Search(executor)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_study(setup, Path(folder), search) as study,
        writes_timed(study) as writes,
    ):
        Campaign(setup, study, executor, search).run()
        wall = search.ended - search.began
        written = sum(took for began, took in writes if search.began < began < search.ended)
    busy, own = executor.utilisation(search.first_job), (wall - written) / search.trials
    storage = written / search.trials
    print(
        f"{trials} trials of {setup.space.dimension} genes, {workers} workers, "
        f"{search.last_job - search.first_job} evaluations: utilisation {busy:.3f} (bar {BUSY}); "
        f"driver {1000 * own:.1f} ms a trial (bar {1000 * OWN:.0f}), "
        f"and {1000 * storage:.1f} ms for the storage's writes"
    )
    return Measured(busy, own, storage)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0, help="an evaluation's, in the mean")
    parser.add_argument("--optimizer", default="cma")
    parser.add_argument("--cpu", action="store_true", help="the driver's CPU time, not wall time")
    given = parser.parse_args()
    if given.cpu:  # on a machine that others use
        global CLOCK
        CLOCK = time.process_time
    optimizer = f"optimizer={{kind: {given.optimizer}, screen: 1}}"
    missed = False
    for rungs in ([], ["fitness.rungs=[32, 128, all]"]):
        print("with rungs" if rungs else "without rungs")
        found = measure([optimizer, *rungs], given.trials, given.workers, given.seconds)
        missed |= found.busy < BUSY or found.own > OWN
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
