"""Work in flight: each candidate has a marker in the study, so that no crash goes unnoticed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, count

import numpy as np

from evomerge.campaign.candidate import Candidate, proposed_again
from evomerge.campaign.event_log import EventLog
from evomerge.common.errors import EvomergeError
from evomerge.search.optimizers import Optimizer, Proposal
from evomerge.study.record import Evaluation, Marker
from evomerge.study.study import Study
from evomerge.workers.job import Executor, Job, Outcome

ATTEMPTS = 3
"""Attempts after which a candidate that takes down its worker or the driver counts as failed."""


class InFlight:
    """Candidates that wait for a worker, or for a result.

    Attributes:
        queue: to be started next, whatever the budget says.
        running: ticket → candidate that is being measured.
        waiting: ticket → candidate whose recipe is being measured for another one.
        log: the event log.
    """

    def __init__(self, study: Study, executor: Executor, log: EventLog) -> None:
        """Take over what was in flight when the last driver stopped; `log` is told of events."""
        self.queue: deque[Candidate] = deque()
        self.running: dict[int, Candidate] = {}
        self.waiting: dict[int, Candidate] = {}
        self._study, self._executor, self.log = study, executor, log
        self._left = {_key(m.digest, m.split, m.ask): m for m in study.markers()}
        self._taken: set[int | None] = {marker.slot for marker in self._left.values()}

    def __len__(self) -> int:
        """Number of candidates that have begun and are not on record."""
        return len(self.queue) + len(self.running) + len(self.waiting)

    def begun(self) -> Iterator[Candidate]:
        """The candidates that have begun and are not on record."""
        return chain(self.queue, self.running.values(), self.waiting.values())

    @property
    def mostly_waiting(self) -> bool:
        """True if more candidates wait for another's result than are being measured."""
        return len(self.waiting) > len(self.running)

    def proposals(self, optimizer: Optimizer, trials: Sequence[Evaluation]) -> Iterator[Proposal]:
        """Give what the last driver left over or withdrew; then the optimizer's, when needed.

        Args:
            optimizer: is asked for what is in none of these.
            trials: its own, which are on record.
        """
        left = self._left_over()
        known = {*(trial.ask for trial in trials), *(proposal.ask for proposal in left)}
        again = [t for t in self._study.withdrawn_to_repeat() if t.ask not in known]
        known |= {trial.ask for trial in again}
        asks = (index for index in count() if index not in known)
        repeated = (proposed_again(trial, optimizer.tells) for trial in again)
        return chain(left, repeated, map(optimizer.ask, asks))

    def _left_over(self) -> list[Proposal]:
        """Return the proposals that the last driver had not recorded, in the order of the asks."""
        found = []
        for marker in self._left.values():
            if marker.ask is None or marker.genome is None:
                continue
            genome, asked = marker.genome, None
            if marker.descent is not None:  # the candidate goes on where that has come to
                genome, asked = np.array(marker.descent.start), marker.descent.asked
            tells = marker.tells or 0
            found.append(Proposal(marker.ask, tells, genome, marker.parents, asked))
        return sorted(found, key=lambda proposal: proposal.ask)

    def enqueue(self, candidates: Iterable[Candidate]) -> None:
        """Queue candidates, with the attempts that earlier drivers made on them."""
        self.queue.extend(self.with_previous_attempts(candidate) for candidate in candidates)

    def with_previous_attempts(self, candidate: Candidate) -> Candidate:
        """Return the candidate with the attempts and the progress of earlier drivers."""
        ask = candidate.proposal.ask if candidate.proposal else None
        marker = self._left.get(_key(*candidate.key, ask))
        if marker is None:
            return candidate
        attempt = min(marker.attempt + (not marker.not_counted), ATTEMPTS)
        progress = candidate.progress and (marker.progress or candidate.progress)
        descent = marker.descent or candidate.descent
        return replace(
            candidate, attempt=attempt, ticket=marker.slot, progress=progress, descent=descent
        )

    def start(self, candidate: Candidate, items: Mapping[str, Sequence[str]] | None) -> None:
        """Mark a candidate, and submit it; or let it wait, while its recipe is being measured.

        The driver's death counts as an attempt only where both are one process: not with isolated
        workers, and not at a last attempt, which is made in a process of its own. So a driver that
        is killed, however often, never fails a candidate.

        Args:
            items: task → ids to measure; None for all of the split.
        """
        if any(one.key == candidate.key and not one.descending for one in self.running.values()):
            self.waiting[self._mark(candidate, not_counted=True)] = candidate
            return
        # a finalist that is a baseline is measured once, as either
        wanted = candidate.role in ("finalist", "baseline") and candidate.split == "select"
        recipe, split = candidate.recipe, candidate.split
        self.submit(candidate, Job(0, recipe, split, items, record_weights=wanted))

    def submit(self, candidate: Candidate, job: Job) -> None:
        """Mark a candidate, and submit a job of it, which gets the marker's slot for a ticket."""
        last = candidate.attempt == ATTEMPTS
        ticket = self._mark(candidate, not_counted=self._executor.isolated or last)
        self.running[ticket] = candidate
        self._executor.submit(replace(job, ticket=ticket, last=last))

    def keep(self, candidate: Candidate) -> None:
        """Write down how far a candidate's descent has come; what follows is first in the queue."""
        ticket = self._mark(candidate, not_counted=True)
        self.queue.appendleft(replace(candidate, ticket=ticket))

    def wait(self) -> tuple[Candidate, Outcome] | None:
        """Wait for an outcome, and return it with its candidate; None if there is no final one.

        A candidate that may be tried again goes back to the head of the queue.
        """
        outcome = self._executor.wait()
        self.log.write(self._executor.drain_events(), self._executor.workers)
        if outcome is None:
            return None
        candidate = self.finish(outcome.job.ticket)
        if outcome.machine_fault:  # no attempt of the candidate
            self.queue.appendleft(candidate)
            return None
        if outcome.retryable and candidate.attempt < ATTEMPTS:
            self.queue.appendleft(replace(candidate, attempt=candidate.attempt + 1))
            return None
        if outcome.retryable:
            outcome = replace(outcome, reason=f"{outcome.reason} ({ATTEMPTS} attempts)")
        elif found := outcome.measurement or outcome.gradient:
            self.log.record_engine_facts(found.facts)
            if outcome.measurement is not None:
                self.log.count_reuse(outcome.measurement.reuse)
        return candidate, outcome

    def finish(self, ticket: int) -> Candidate:
        """Take out a candidate whose work has ended; it keeps its slot until it is on record."""
        return replace(self.running.pop(ticket), ticket=ticket)

    def release_waiting(self, candidate: Candidate) -> list[Candidate]:
        """Free the slot of a candidate that is on record; return those that waited for it."""
        self._taken.discard(candidate.ticket)
        waited = [ticket for ticket, one in self.waiting.items() if one.key == candidate.key]
        return [replace(self.waiting.pop(ticket), ticket=ticket) for ticket in waited]

    def uncount(self) -> None:
        """Mark what is running as not counted: the driver stops in order."""
        for ticket, candidate in self.running.items():
            with suppress(EvomergeError):
                self._mark(replace(candidate, ticket=ticket), not_counted=True)

    def _mark(self, candidate: Candidate, not_counted: bool) -> int:
        """Write the marker in the candidate's slot, or in the first that holds none that counts."""
        ticket = candidate.ticket
        if ticket is None:
            ticket = next(slot for slot in count() if slot not in self._taken)
        proposal = candidate.proposal
        self._taken.add(ticket)
        self._study.mark(
            Marker(
                slot=ticket,
                digest=candidate.recipe.digest,
                split=candidate.split,
                attempt=candidate.attempt,
                ask=proposal.ask if proposal else None,
                tells=proposal.tells if proposal else None,
                genome=proposal.genome if proposal else None,
                parents=proposal.parents if proposal else (),
                progress=candidate.progress,
                not_counted=not_counted,
                descent=candidate.descent,
            )
        )
        return ticket


def _key(digest: str, split: str, ask: int | None) -> tuple[str, str, int | None]:
    """The key of a marker: an ask's is its index, for the recipe of a descent changes."""
    return (digest if ask is None else "", split, ask)
