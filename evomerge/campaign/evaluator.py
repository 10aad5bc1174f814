"""The evaluator: looks candidates up or puts them to work, and records what comes of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from evomerge.campaign import choice
from evomerge.campaign.candidate import Candidate, finalist, named
from evomerge.campaign.descents import ProposedDescents
from evomerge.campaign.event_log import EventLog
from evomerge.campaign.failure_streak import CHECK, FailureStreak
from evomerge.campaign.in_flight import InFlight
from evomerge.campaign.listener import Listener
from evomerge.campaign.recorder import Recorder
from evomerge.campaign.rungs import AllItems, Continue, Finished, Pruned
from evomerge.config import AUDIT
from evomerge.judging.answer_facts import AnswerFacts
from evomerge.judging.constraints import Items
from evomerge.recipe import BASE
from evomerge.search.optimizers import Proposal
from evomerge.study.record import Evaluation, RungProgress
from evomerge.workers.job import Executor

_NONE: Iterator[Proposal] = iter(())


class Evaluator:
    """Brings candidates to their results.

    Attributes:
        in_flight: the candidates that have begun and are not on record.
        rungs: which items they are measured on; there are none until the search begins.
    """

    def __init__(
        self,
        record: Recorder,
        executor: Executor,
        listener: Listener,
        elsewhere: Mapping[tuple[str, str], Evaluation],
    ) -> None:
        """`elsewhere`: what other studies know, by digest and split; copied, not measured again."""
        self.in_flight = InFlight(record.study, executor, EventLog(record.study, listener))
        self.rungs = AllItems()
        self._record, self._elsewhere = record, elsewhere
        self._executor, self._listener = executor, listener
        self._streak = FailureStreak(record)
        self._descents = ProposedDescents(record, self.in_flight, listener)

    def measure(self, phase: str, candidates: Sequence[Candidate]) -> None:
        """Measure what is not on record yet; the listener is told the phase's name."""
        unknown = [c for c in candidates if c.key not in self._record.known]
        self._listener.phase(phase, len(candidates) - len(unknown), len(candidates))
        self.in_flight.enqueue(unknown)
        self.run_until_idle()

    def measure_references(self, split: str) -> None:
        """Measure the parents first, for objectives and constraints may compare with them."""
        space = self._record.setup.space
        self.measure(f"parents on {split}", named(space.parents(), "parent", split))
        self._record.meet_parents(split)
        self.measure(f"baselines on {split}", named(space.baselines(), "baseline", split))
        if grid := choice.grid_on(split, self._record):
            self.measure(f"grid on {split}", grid)

    def measure_audit(self, winner: Evaluation) -> None:
        """Measure parents and winner on the audit's tasks, if there are any."""
        if self._record.setup.audit:
            parents = named(self._record.setup.space.parents(), "parent", AUDIT)
            self.measure("parents on the audit's tasks", parents)
            self.measure("audit", [finalist(winner, AUDIT)])

    def run_until_idle(
        self,
        proposals: Iterator[Proposal] = _NONE,
        may_ask: Callable[[], bool] = lambda: False,
        deadline: float | None = None,
    ) -> None:
        """Keep the workers busy until nothing is queued, in flight, or still to be asked for.

        Descents that go on at the deadline rest until the next session: they are on record.

        Args:
            proposals: each is asked for when a worker is free, while `may_ask()`.
            may_ask: says whether another proposal is wanted.
            deadline: in the seconds of time.monotonic.
        """
        work = self.in_flight
        while work or may_ask() or self._check_last_failures():
            while self._executor.free and (work.queue or may_ask()):
                candidate = work.queue.popleft() if work.queue else self._candidate(next(proposals))
                if not candidate.descending or in_time(deadline):
                    self._start(candidate)
            if work.running or not self._executor.free:
                self._wait()

    @property
    def begun_items(self) -> int:
        """What candidates in flight are asked for by now: by descents, and on a first rung."""
        return self._descents.begun_items

    def _candidate(self, proposal: Proposal) -> Candidate:
        """Make a candidate of a proposal; it goes on where an earlier driver has come with it."""
        recipe, progress = self._record.setup.space.decode(proposal.genome), self.rungs.begin()
        candidate = Candidate(recipe, "search", "search", proposal=proposal, progress=progress)
        return self._descents.begin(self.in_flight.with_previous_attempts(candidate))

    def _start(self, candidate: Candidate) -> None:
        """Look the candidate up in this study, then in others, or put it to work."""
        if candidate.descending:
            end = self._descents.start_job(candidate)
            if end is None:
                return
            candidate = end
        if candidate.role == CHECK:
            self.in_flight.start(candidate, self.rungs.items(candidate))
            return
        known = self._record.known.get(candidate.key)
        elsewhere = self._elsewhere.get(candidate.key)
        found = None if elsewhere is None else self.rungs.among(candidate, elsewhere)
        if known is not None:
            self._record.repeat(candidate, known)
            self._release(candidate)
        elif elsewhere is not None and found is not None:
            self._measured(candidate, found, {}, elsewhere.answers)
        else:
            self.in_flight.start(candidate, self.rungs.items(candidate))

    def _check_last_failures(self) -> bool:
        """Queue the base model if the last candidates failed; False if there is nothing to check.

        So a fault that begins with the last candidates of a phase is not laid on them.
        """
        return self._queue(self._streak.check())

    def _wait(self) -> None:
        """Wait for one outcome, and record it if it is final.

        Raises:
            EvomergeError: the base model itself cannot be scored, so nothing else can be.
            StoppedError: it cannot any more; what failed meanwhile was withdrawn.
        """
        ended = self.in_flight.wait()
        if ended is None:
            return
        candidate, outcome = ended
        if candidate.descending:
            self._descents.take(candidate, outcome)
            return
        done = outcome.measurement
        if done is not None and candidate.role == CHECK:
            self._streak.cleared()
            self._release(candidate)
        elif done is not None:
            self._streak.succeeded()
            self._measured(candidate, done.scores, done.seconds, done.answers, done.weights)
        elif candidate.name == BASE:
            raise self._streak.stop(str(outcome.reason))
        else:
            results = candidate.progress.results if candidate.progress else ()
            asked = self.rungs.asked(candidate)
            self._record.write(candidate, RungProgress(results), asked, reason=outcome.reason)
            self._queue(self._streak.failed(candidate))
            self._release(candidate)

    def _queue(self, check: Candidate | None) -> bool:
        """Put a check of the base model, if there is one, before all other candidates."""
        if check is not None:
            self.in_flight.queue.appendleft(check)
        return check is not None

    def _measured(
        self,
        candidate: Candidate,
        items: Items,
        seconds: Mapping[str, float],
        answers: Mapping[str, AnswerFacts],
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        """Queue a candidate for its next rung, or record it: pruned, or finished."""
        asked = self.rungs.asked(candidate)
        match self.rungs.decide(candidate, items, seconds, self._record.trials):
            case Continue(progress):
                self.in_flight.queue.appendleft(replace(candidate, progress=progress))
                return
            case Pruned(progress, estimates):
                self._record.write(candidate, progress, asked, estimates)
            case Finished(progress):
                self._record.write(candidate, progress, asked, weights=weights, answers=answers)
        self._release(candidate)

    def _release(self, candidate: Candidate) -> None:
        """Start those that waited for the result of a candidate, which is on record now."""
        for waiting in self.in_flight.release_waiting(candidate):
            self._start(waiting)


def in_time(deadline: float | None) -> bool:
    """Say whether a deadline, in the seconds of time.monotonic, is still to come; None is never."""
    return deadline is None or time.monotonic() < deadline
