"""The campaign: ask, measure, record, tell, until the budget is spent; then choose and test.

Everything is recorded in the study the moment it is known, and the optimizer's state is what the
record makes of it, so a campaign that was killed goes on where it stopped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import count
from typing import Any

import numpy as np

from evomerge.campaign.candidate import Candidate, finalist, named
from evomerge.campaign.event_log import EventLog
from evomerge.campaign.in_flight import ATTEMPTS, InFlight
from evomerge.campaign.listener import Listener
from evomerge.campaign.rungs import SuccessiveHalving, open_ladder
from evomerge.campaign.setup import Setup
from evomerge.common.errors import EvomergeError
from evomerge.judging.scores import Judge
from evomerge.judging.selection import Judged, best, by_preference, leading
from evomerge.recipe import BASE
from evomerge.search.optimizers.replay import tell
from evomerge.study.judged import judge_on, judged, known_of, scores_of
from evomerge.study.record import Evaluation, RungProgress
from evomerge.study.sessions import begin_session
from evomerge.study.study import Study
from evomerge.workers.job import Executor, Job
from evomerge.workers.worker import PACKAGES


class Campaign:
    """One run of a campaign over its study."""

    def __init__(
        self,
        setup: Setup,
        study: Study,
        executor: Executor,
        listener: Listener,
        elsewhere: Mapping[tuple[str, str], Evaluation] | None = None,
    ) -> None:
        """Bring a new optimizer to the state of the record.

        `elsewhere`: what other studies know of these items, by digest and split; it is copied
        instead of being measured again.
        """
        self._elsewhere = elsewhere or {}
        self._setup = setup
        self._study = study
        self._executor = executor
        self._listener = listener
        self._flights = InFlight(study, isolated=executor.isolated)
        self._queue: deque[Candidate] = deque()  # to be measured whatever the budget says
        self._logbook = EventLog(study, listener)
        self._versions = {name: version(name) for name in PACKAGES}
        self._known = known_of(study.evaluations())
        self._facts: Mapping[str, int] = study.note("engine") or {}
        self._optimizer = setup.optimizer()
        self._judges: dict[str, Judge] = {}
        self._ladder: SuccessiveHalving | None = None
        self._trials: list[Evaluation] = []  # the optimizer's own, in the order of the tells
        self._spent = 0  # items they were asked for
        own = [e for e in study.evaluations() if e.optimizers_own]
        if own:  # then every parent is on record
            self._judges["search"] = judge_on(setup.judge, study.evaluations(), "search")
        for evaluation in own:
            self._tell(evaluation)

    def run(self, deadline: float | None = None) -> None:
        """Measure the yardsticks, search until the budget or `deadline` (time.monotonic) is
        reached, choose the winner on select, and open the test split.

        Raises:
            EvomergeError: the base model itself cannot be scored, or no trial succeeded.
        """
        with self._orderly(deadline):
            self._measure_yardsticks("search")
            self._search(deadline)
            winner = self._choose()
            self._open_test(winner.digest)
            self._measure_yardsticks("test")
            self._measure("test", [finalist(winner, "test")])
            self._conclude(winner)

    def choose(self, deadline: float | None = None) -> bool:
        """Search and choose the winner on select; test stays shut.

        Returns:
            Whether there is a winner: not if `deadline` came before the budget was spent.

        Raises:
            EvomergeError: the base model itself cannot be scored, or no trial succeeded.
        """
        with self._orderly(deadline):
            self._measure_yardsticks("search")
            self._search(deadline)
            if self._budget_left():
                return False
            self._conclude(self._choose())
            return True

    def race(self) -> None:
        """Search, then measure on select whatever was the best of the search at some time.

        The optimizer is told nothing of it, and test stays shut.

        Raises:
            EvomergeError: the base model itself cannot be scored.
        """
        with self._orderly():
            self._measure_yardsticks("search")
            self._search(None)
            trials = judged(self._judge("search"), self._trials)
            leaders = {one.digest: one.trial for one in leading(trials) if one}
            self._measure_yardsticks("select")
            self._measure("select", [finalist(trial, "select") for trial in leaders.values()])

    @contextmanager
    def _orderly(self, deadline: float | None = None) -> Iterator[None]:
        """A run, noted as begun; a stop within is no fault of what was in flight: it keeps its
        attempts.
        """
        wanted = self._setup.config.workers.count
        workers = self._executor.workers if wanted == "auto" else wanted
        begin_session(self._study, workers, deadline)
        try:
            yield
        except (KeyboardInterrupt, EvomergeError):
            self._study.hurry()
            self._flights.excuse()
            raise

    def _search(self, deadline: float | None) -> None:
        budget = self._setup.config.budget.trials
        self._ladder = open_ladder(self._setup, self._study, self._judge("search"), self._listener)
        self._listener.phase("search", len(self._trials), budget)
        self._left = deque(self._flights.left_over())
        known = {*(trial.ask for trial in self._trials), *(proposal.ask for proposal in self._left)}
        self._asks = (index for index in count() if index not in known)
        self._fly(lambda: self._may_ask(deadline))

    def _fly(self, may_ask: Callable[[], bool] = lambda: False) -> None:
        """Keep the workers busy until nothing is queued, in flight, or still to be asked for."""
        while self._queue or self._flights or may_ask():
            while self._executor.free and (self._queue or may_ask()):
                self._start(self._queue.popleft() if self._queue else self._ask())
            if self._flights.flying or not self._executor.free:
                self._land()

    def _choose(self) -> Evaluation:
        """The finalist that does best on the select split, which yardsticks meet too."""
        if not self._trials:
            raise EvomergeError("the time was up before the first trial; run it again, for longer")
        top = self._finalists()
        if not top:
            raise EvomergeError(f"no trial succeeded; the last failed: {self._trials[-1].reason}")
        self._measure_yardsticks("select")
        self._measure("select", [finalist(one.trial, "select") for one in top])
        chosen = [self._known[one.digest, "select"] for one in top]
        objective = self._setup.judge.objective
        preferred = by_preference(judged(self._judge("select"), chosen), objective)
        if not preferred:
            raise EvomergeError(f"no finalist could be scored on select: {chosen[0].reason}")
        return preferred[0].trial

    def _finalists(self) -> list[Judged[Evaluation]]:
        """The best by search, among whom select decides."""
        trials = judged(self._judge("search"), self._trials)
        ranked = by_preference(trials, self._setup.judge.objective)
        return ranked[: self._setup.config.fitness.select_top]

    def _conclude(self, winner: Evaluation) -> None:
        """Note whom the search gave, among whom it was chosen, and after how many trials."""
        facts = {
            "winner": winner.digest,
            "finalists": [one.digest for one in self._finalists()],
            "trials": len(self._trials),
            **({} if self._setup.config.budget.items is None else {"items": self._spent}),
        }
        self._study.set_note("concluded", facts)

    def _open_test(self, winner: str) -> None:
        """Note, before it is opened, when and for whom the test split was opened."""
        opened = self._study.note("test_opened") or []
        entry = {"trials": len(self._trials), "winner": winner}
        if entry not in opened:
            self._study.set_note("test_opened", [*opened, entry])

    def _measure_yardsticks(self, split: str) -> None:
        """The parents first: objectives and constraints may compare with them."""
        space, judge = self._setup.space, self._setup.judge
        self._measure(f"parents on {split}", named(space.parents(), "parent", split))
        self._judges[split] = judge_on(judge, self._study.evaluations(), split)
        self._measure(f"baselines on {split}", named(space.baselines(), "baseline", split))
        if grid := self._grid(split):
            self._measure(f"grid on {split}", grid)

    def _grid(self, split: str) -> list[Candidate]:
        """The grid's merges; on later splits, of those that are no baselines the best on search."""
        grid = named(self._setup.grid(), "grid", split)
        if split == "search":
            return grid
        known = [self._known[one.recipe.digest, "search"] for one in grid]
        leader = best(judged(self._judge("search"), [e for e in known if e.role == "grid"]))
        return [one for one in grid if leader and one.recipe.digest == leader.digest]

    def _judge(self, split: str) -> Judge:
        """The judge of a split; before its parents are all measured, one that knows none."""
        return self._judges.get(split, self._setup.judge)

    def _measure(self, phase: str, candidates: list[Candidate]) -> None:
        """Measure what is not on record yet."""
        unknown = [self._flights.again(c) for c in candidates if c.key not in self._known]
        self._listener.phase(phase, len(candidates) - len(unknown), len(candidates))
        self._queue.extend(unknown)
        self._fly()

    def _may_ask(self, deadline: float | None) -> bool:
        """Whether another trial may begin: not if most of those begun wait for the same results."""
        in_time = deadline is None or time.monotonic() < deadline
        enough = len(self._flights.waiting) > len(self._flights.flying)
        begun = len(self._flights) + len(self._queue)
        return in_time and not enough and self._budget_left(begun)

    def _budget_left(self, begun: int = 0) -> bool:
        """Whether there is budget for another trial, beside those that have begun.

        What these will be asked for on higher rungs is not known: items may be overspent by it.
        """
        budget, first = self._setup.config.budget, self._setup.first_rung
        if len(self._trials) + begun >= budget.trials:
            return False
        return budget.items is None or self._spent + begun * first < budget.items

    def _ask(self) -> Candidate:
        """What the last driver left in flight, then what the optimizer proposes."""
        left = self._left
        proposal = left.popleft() if left else self._optimizer.ask(next(self._asks))
        recipe = self._setup.space.decode(proposal.genome)
        climb = RungProgress() if self._ladder else None
        candidate = Candidate(recipe, "search", "search", proposal=proposal, climb=climb)
        return self._flights.again(candidate)

    def _start(self, candidate: Candidate) -> None:
        """Look the candidate up, let it wait for one with its recipe, or put it to work."""
        known = self._known.get(candidate.key)
        elsewhere = self._measured_elsewhere(candidate)
        if known is not None:
            climbed = {"estimates": known.estimates, "steps": known.steps, "asked": known.asked}
            self._record(candidate, known.scores, known.reason, {}, **climbed)
        elif elsewhere is not None:
            self._measured(candidate, elsewhere, {})
        elif self._flights.is_flying(candidate):
            self._flights.wait_beside(candidate)
        else:
            ticket = self._flights.start(candidate)
            ladder, climb = self._ladder, candidate.climb
            items = ladder.wanted(climb) if ladder and climb else None
            last = candidate.attempt == ATTEMPTS
            self._executor.submit(Job(ticket, candidate.recipe, candidate.split, items, last))

    def _land(self) -> None:
        """Wait for one outcome and record it; a candidate whose worker died flies again."""
        outcome = self._executor.wait()
        self._logbook.write(self._executor.drain_events(), self._executor.workers)
        if outcome is None:
            return
        candidate = self._flights.land(outcome.job.ticket)
        if outcome.machine_fault:
            self._queue.appendleft(candidate)
        elif outcome.retryable and candidate.attempt < ATTEMPTS:
            self._queue.appendleft(replace(candidate, attempt=candidate.attempt + 1))
        elif outcome.retryable:
            self._fail(candidate, f"{outcome.reason} ({ATTEMPTS} attempts)")
        elif outcome.measurement is None:
            self._fail(candidate, outcome.reason)
        else:
            done = outcome.measurement
            self._heed(done.facts)
            self._measured(candidate, done.scores, done.seconds)

    def _heed(self, facts: Mapping[str, int]) -> None:
        """Note what engines found out about themselves, of several workers the least."""
        least = {name: min(value, self._facts.get(name, value)) for name, value in facts.items()}
        if least != self._facts:
            self._facts = least
            self._study.set_note("engine", least)

    def _measured(
        self, candidate: Candidate, items: Mapping[str, np.ndarray], seconds: Mapping[str, float]
    ) -> None:
        """Record a candidate that is done; one on a rung may be, or goes on to the next."""
        ladder, climb = self._ladder, candidate.climb
        if ladder is None or climb is None:
            return self._record(candidate, items, None, seconds)
        climb = ladder.landed(climb, items, seconds)
        climbed: dict[str, Any] = {"asked": ladder.asked(climb)}
        if not ladder.at_top(climb):
            stops = ladder.stops(climb, self._trials)
            climb, estimates = ladder.step(climb)
            if not stops:
                self._queue.appendleft(replace(candidate, climb=climb))
                return None
            climbed["estimates"] = estimates
        return self._record(
            candidate, climb.scores, None, climb.seconds, steps=climb.steps, **climbed
        )

    def _measured_elsewhere(self, candidate: Candidate) -> Mapping[str, np.ndarray] | None:
        """What another study has measured of the items that the candidate is to be asked."""
        known = self._elsewhere.get(candidate.key)
        if known is not None and self._ladder and candidate.climb:
            return self._ladder.among(candidate.climb, known.scores)
        return None if known is None or known.estimated else known.scores

    def _fail(self, candidate: Candidate, reason: str | None) -> None:
        """Record a failure; a base that cannot be scored is the end: nothing else will be."""
        if candidate.name == BASE:
            raise EvomergeError(f"the base model itself cannot be scored: {reason}")
        climb, climbed = candidate.climb, {}
        if self._ladder and climb:
            climbed = {"steps": climb.steps, "asked": self._ladder.asked(climb)}
        self._record(candidate, {}, reason, {}, **climbed)

    def _record(
        self,
        candidate: Candidate,
        items: Mapping[str, np.ndarray],
        reason: str | None,
        seconds: Mapping[str, float],
        **climbed: Any,
    ) -> None:
        """Write the fact, then let the optimizer and the display know.

        `climbed`: what `Evaluation` keeps of the rungs, by its fields' names.
        """
        estimates = climbed.get("estimates", {})
        judge = self._judge(candidate.split)
        scores = None if reason is not None else scores_of(judge, items, estimates)
        proposal = candidate.proposal
        evaluation = self._study.add(
            Evaluation(
                split=candidate.split,
                digest=candidate.recipe.digest,
                recipe=candidate.recipe.to_json(),
                role=candidate.role,
                name=candidate.name,
                value=scores.value if scores else None,
                se=scores.se if scores else None,
                violation=scores.violation if scores else 0.0,
                n=scores.n if scores else 0,
                scores=items,
                reason=reason,
                params=self._setup.space.params(proposal.genome) if proposal else {},
                genome=proposal.genome if proposal else None,
                ask=proposal.ask if proposal else None,
                tells=proposal.tells if proposal else None,
                parents=proposal.parents if proposal else (),
                state=self._optimizer.state() if proposal else {},
                attempt=candidate.attempt,
                seconds=seconds,
                versions=self._versions,
                estimated=scores.estimated if scores else False,
                **climbed,
            )
        )
        self._known[candidate.key] = evaluation
        if evaluation.optimizers_own:
            self._tell(evaluation)
        self._listener.recorded(evaluation)
        for waiting in self._flights.settle(candidate):
            self._start(waiting)

    def _tell(self, trial: Evaluation) -> None:
        self._trials.append(trial)
        self._spent += trial.cost(sum(self._setup.sizes("search").values()))
        tell(self._optimizer, self._judge("search"), trial)
