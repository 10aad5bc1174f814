"""Gradient descents before and after the search: chains of short jobs.

Where those of `initial` end the optimizer tries first; those of `polish` begin at finalists.

A job is one step's gradient, or one look at the documents held back. What came of it is in the
study before the next begins, so that a kill loses at most the jobs in flight; several descents run
side by side where there are several workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.campaign.in_flight import ATTEMPTS, InFlight
from evomerge.campaign.initial_points import descents_of, origin_of
from evomerge.campaign.listener import Listener
from evomerge.campaign.recorder import Recorder
from evomerge.campaign.setup import Setup
from evomerge.common.errors import EvomergeError
from evomerge.config import DescentOptions
from evomerge.search.descent import Batches, begin, looked, scales, stepped
from evomerge.study.record import DescentRecord
from evomerge.study.study import Study
from evomerge.workers.job import Executor, Job, Outcome
from evomerge.workers.worker import MIXED, Gradient

BACKWARD = 3
"""Items that a document of a step costs: a backward pass takes about two forward passes."""


@dataclass(frozen=True)
class Planned:
    """A descent that is to be made.

    Attributes:
        where: it stands in the campaign file.
        options: how it descends.
        seed: whole numbers that key its documents.
        record: how far it has come.
    """

    where: str
    options: DescentOptions
    seed: Sequence[int]
    record: DescentRecord


class Descents:
    """Runs descents side by side, or goes on with them.

    Those before the search count in the budget of items, and end the campaign where they cannot
    begin; those after it are counted beside, and a failure ends that descent alone.
    """

    def __init__(
        self,
        record: Recorder,
        executor: Executor,
        in_flight: InFlight,
        listener: Listener,
        planned: Sequence[Planned],
        keep: Callable[[Sequence[DescentRecord]], None],
        *,
        after: bool = False,
    ) -> None:
        """Take over how far they have come.

        Args:
            record: of the campaign.
            executor: makes the jobs.
            in_flight: holds the log of events.
            listener: is told how they go.
            planned: the descents.
            keep: writes their records to the study, in this order.
            after: they come after the search.
        """
        self._record, self._executor, self._listener = record, executor, listener
        self._setup, self._log = record.setup, in_flight.log
        self._planned, self._keep, self._after = planned, keep, after
        counted = {task.task: task.weight for task in self._setup.tasks if task.weight > 0}
        total = sum(counted.values())
        self._weights = {task: weight / total for task, weight in counted.items()}
        items = {task: self._setup.items["search"][task] for task in counted}
        self._batches = [
            Batches(items, one.options.batch, one.options.held_back, one.seed) for one in planned
        ]
        self._records = [one.record for one in planned]
        self._running: set[int] = set()

    @property
    def records(self) -> list[DescentRecord]:
        """How far they have come."""
        return list(self._records)

    def run(self, deadline: float | None) -> bool:
        """Descend until all are done; False if `deadline` (time.monotonic) came first.

        Raises:
            EvomergeError: the first job of a descent before the search fails; names its entry.
        """
        self._count_session()
        for one, planned in zip(self._records, self._planned, strict=True):
            if one.done is None:
                self._listener.said(
                    f"gradient descent from {one.origin}: step {one.step} of "
                    f"{planned.options.steps}"
                )
        try:
            while any(one.done is None for one in self._records):
                self._submit(deadline)
                if not self._running:
                    return False
                outcome = self._executor.wait()
                self._log.write(self._executor.drain_events(), self._executor.workers)
                if outcome is not None:
                    self._running.discard(outcome.job.ticket)
                    self._take(outcome)
        except (KeyboardInterrupt, EvomergeError):
            self._records = [replace(r, attempts=max(0, r.attempts - 1)) for r in self._records]
            self._save()
            raise
        return True

    def _count_session(self) -> None:
        """Count this session as an attempt, where a job can take the driver down with it."""
        if not self._executor.isolated:
            self._records = [
                one if one.done else replace(one, attempts=one.attempts + 1)
                for one in self._records
            ]
        for index, one in enumerate(self._records):
            if one.attempts > ATTEMPTS:
                self._end(index, f"it took the driver down {ATTEMPTS} times")
        self._save()

    def _submit(self, deadline: float | None) -> None:
        """Begin the next job of every descent that has none, as workers, time and budget allow."""
        for index, record in enumerate(self._records):
            if record.done is not None or index in self._running or not self._executor.free:
                continue
            if deadline is not None and time.monotonic() >= deadline:
                continue
            job = self._job(index)
            if not self._after and self._overspends(job):
                self._end(index, "the item budget has room for one trial more")
                continue
            self._running.add(index)
            self._executor.submit(job)

    def _overspends(self, job: Job) -> bool:
        """Say whether a job leaves no items for a trial."""
        budget, first = self._setup.config.budget.items, self._setup.first_rung
        return budget is not None and self._record.spent + _cost(job) + first > budget

    def _job(self, index: int) -> Job:
        """The next job of a descent: a look, where one is due, or a step."""
        record, options = self._records[index], self._planned[index].options
        recipe = self._setup.space.decode(np.array(record.genome))
        due = record.step % options.check == 0 or record.step == options.steps
        last = record.attempts >= ATTEMPTS
        if due and not record.checked:
            return Job(index, recipe, "search", self._batches[index].held, last, task="losses")
        batch, weights = self._batches[index].at(record.step), self._weights
        return Job(index, recipe, "search", batch, last, task="gradient", task_weights=weights)

    def _take(self, outcome: Outcome) -> None:
        """Go on with a descent by what came of its job."""
        index = outcome.job.ticket
        record, options = self._records[index], self._planned[index].options
        if outcome.machine_fault:  # no attempt of the descent
            return
        if outcome.retryable and record.attempts < ATTEMPTS:
            self._records[index] = replace(record, attempts=record.attempts + 1)
            self._save()
            return
        found = outcome.gradient
        if found is None:
            if not (self._after or record.step or record.checks):
                raise EvomergeError(f"{self._planned[index].where}: {outcome.reason}")
            self._end(index, str(outcome.reason))
            return
        # 1. what it cost
        cost = _cost(outcome.job)
        self._record.spent += 0 if self._after else cost
        self._log.record_engine_facts(found.facts)
        record = replace(record, items=record.items + cost, attempts=0)
        # 2. a look at the documents held back, or a step
        loss = self._loss(found)
        if outcome.job.task == "losses":
            self._records[index] = looked(record, loss, options.steps, options.patience)
        else:
            record = replace(record, losses=[*record.losses, loss])
            space, genome = self._setup.space, np.array(record.genome)
            gradient = space.pull_back(genome, found.derivatives[MIXED])
            self._records[index] = stepped(record, gradient, options.rate)
            if not np.isfinite(gradient).all():
                self._records[index] = replace(record, done="the gradient was not finite")
        # 3. on record before anything follows from it
        self._save()
        if self._records[index].done:
            self._say(self._records[index])

    def _end(self, index: int, why: str) -> None:
        self._records[index] = replace(self._records[index], done=why)
        self._save()
        self._say(self._records[index])

    def _say(self, record: DescentRecord) -> None:
        losses = [loss for _, loss in record.checks]
        fell = f": loss held back {losses[0]:.4g} → {min(losses):.4g}" if losses else ""
        self._listener.said(
            f"gradient descent from {record.origin}{fell} at step {record.best_step} of "
            f"{record.step} ({record.items:,} items); {record.done}"
        )

    def _loss(self, found: Gradient) -> float:
        """The tasks' mean losses, weighted."""
        return float(sum(w * found.losses[task].mean() for task, w in self._weights.items()))

    def _save(self) -> None:
        self._keep(self._records)


def before_search(record: Recorder) -> list[Planned]:
    """Plan the descents of `initial`; parents must have been measured on search."""
    setup, known = record.setup, record.study.descents()
    configs, parents = descents_of(setup.config.initial), record.parents_by_score()
    if not known:
        starts = [origin_of(one, setup.space, where, parents) for where, one in configs.items()]
        known = [begin(name, genome) for name, genome in starts]
    return [
        Planned(where, options, [setup.config.seed, index], known[index])
        for index, (where, options) in enumerate(configs.items())
    ]


def with_ends(setup: Setup, study: Study) -> Setup:
    """The set-up whose optimizer tries first where the study's descents ended, once all did."""
    records = study.descents()
    if not records or any(one.done is None for one in records):
        return setup
    return setup.with_starts([np.array(one.best) for one in records], study.scales())


def note_scales(record: Recorder) -> None:
    """Note how far genes may vary at first around the descents' ends, unless all is to be plain.

    Studies without the note were begun with nothing, and go on so.
    """
    if not record.setup.config.optimizer.plain and record.study.scales() == []:
        found = map(scales, record.study.descents())
        record.study.set_scales([None if one is None else one.tolist() for one in found])


def _cost(job: Job) -> int:
    """Items that a job costs."""
    assert job.items is not None
    return sum(map(len, job.items.values())) * (BACKWARD if job.task == "gradient" else 1)
