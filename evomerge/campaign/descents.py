"""Gradient descents before the search: chains of short jobs, whose ends the optimizer tries first.

A job is one step's gradient, or one look at the documents held back. What came of it is in the
study before the next begins, so that a kill loses at most the jobs in flight; several descents run
side by side where there are several workers.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from evomerge.campaign.in_flight import ATTEMPTS, InFlight
from evomerge.campaign.initial_points import descents_of, origin_of
from evomerge.campaign.listener import Listener
from evomerge.campaign.recorder import Recorder
from evomerge.campaign.setup import Setup
from evomerge.common.errors import EvomergeError
from evomerge.config import DescentConfig
from evomerge.search.descent import Batches, begin, looked, stepped
from evomerge.study.record import DescentRecord
from evomerge.study.study import Study
from evomerge.workers.job import Executor, Job, Outcome
from evomerge.workers.worker import MIXED, Gradient

BACKWARD = 3
"""Items that a document of a step costs: a backward pass takes about two forward passes."""


def with_ends(setup: Setup, study: Study) -> Setup:
    """The set-up whose optimizer tries first where the study's descents ended, once all did."""
    records = study.descents()
    if not records or any(one.done is None for one in records):
        return setup
    return setup.with_starts([np.array(one.best) for one in records])


class Descents:
    """Runs the campaign file's descents, or goes on with them."""

    def __init__(
        self, record: Recorder, executor: Executor, in_flight: InFlight, listener: Listener
    ) -> None:
        """Take over what the study knows of them; parents must have been measured on search."""
        self._record, self._executor, self._listener = record, executor, listener
        self._setup, self._study, self._log = record.setup, record.study, in_flight.log
        self._configs = descents_of(self._setup.config.initial)
        counted = {task.task: task.weight for task in self._setup.tasks if task.weight > 0}
        total = sum(counted.values())
        self._weights = {task: weight / total for task, weight in counted.items()}
        items = {task: self._setup.items["search"][task] for task in counted}
        self._batches = [
            Batches(items, one.batch, one.held_back, [self._setup.config.seed, index])
            for index, one in enumerate(self._configs.values())
        ]
        self._records = self._study.descents() or self._begin()
        self._running: set[int] = set()

    def run(self, deadline: float | None) -> bool:
        """Descend until all are done; False if `deadline` (time.monotonic) came first.

        Raises:
            EvomergeError: the first job of a descent fails; names its entry.
        """
        self._count_session()
        for one, config in zip(self._records, self._configs.values(), strict=True):
            if one.done is None:
                self._listener.said(
                    f"gradient descent from {one.origin}: step {one.step} of {config.steps}"
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

    def _begin(self) -> list[DescentRecord]:
        parents = self._record.parents_by_score()
        starts = [
            origin_of(config, self._setup.space, where, parents)
            for where, config in self._configs.items()
        ]
        return [begin(name, genome) for name, genome in starts]

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
            budget, first = self._setup.config.budget.items, self._setup.first_rung
            if budget is not None and self._record.spent + _cost(job) + first > budget:
                self._end(index, "the item budget has room for one trial more")
                continue
            self._running.add(index)
            self._executor.submit(job)

    def _job(self, index: int) -> Job:
        """The next job of a descent: a look, where one is due, or a step."""
        record, config = self._records[index], self._config(index)
        recipe = self._setup.space.decode(np.array(record.genome))
        due = record.step % config.check == 0 or record.step == config.steps
        last = record.attempts >= ATTEMPTS
        if due and not record.checked:
            return Job(index, recipe, "search", self._batches[index].held, last, task="losses")
        batch, weights = self._batches[index].at(record.step), self._weights
        return Job(index, recipe, "search", batch, last, task="gradient", task_weights=weights)

    def _take(self, outcome: Outcome) -> None:
        """Go on with a descent by what came of its job."""
        index = outcome.job.ticket
        record, config = self._records[index], self._config(index)
        if outcome.machine_fault:  # no attempt of the descent
            return
        if outcome.retryable and record.attempts < ATTEMPTS:
            self._records[index] = replace(record, attempts=record.attempts + 1)
            self._save()
            return
        found = outcome.gradient
        if found is None:
            if not (record.step or record.checks):
                where = list(self._configs)[index]
                raise EvomergeError(f"{where}: {outcome.reason}")
            self._end(index, str(outcome.reason))
            return
        # 1. what it cost
        cost = _cost(outcome.job)
        self._record.spent += cost
        self._log.record_engine_facts(found.facts)
        record = replace(record, items=record.items + cost, attempts=0)
        # 2. a look at the documents held back, or a step
        loss = self._loss(found)
        if outcome.job.task == "losses":
            self._records[index] = looked(record, loss, config.steps, config.patience)
        else:
            record = replace(record, losses=[*record.losses, loss])
            space, genome = self._setup.space, np.array(record.genome)
            gradient = space.pull_back(genome, found.derivatives[MIXED])
            self._records[index] = stepped(record, gradient, config.rate)
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

    def _config(self, index: int) -> DescentConfig:
        return list(self._configs.values())[index]

    def _save(self) -> None:
        self._study.set_descents(self._records)


def _cost(job: Job) -> int:
    """Items that a job costs."""
    assert job.items is not None
    return sum(map(len, job.items.values())) * (BACKWARD if job.task == "gradient" else 1)
