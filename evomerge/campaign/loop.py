"""The campaign's loop: ask, measure, record, tell, until the budget is spent; then choose and test.

Everything is recorded in the study the moment it is known, and the optimizer's state is what the
record makes of it, so a campaign that was killed goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from evomerge.campaign import choice
from evomerge.campaign.candidate import finalist
from evomerge.campaign.descents import descend_before_search, with_ends
from evomerge.campaign.evaluator import Evaluator, in_time
from evomerge.campaign.listener import Listener
from evomerge.campaign.polish import polish
from evomerge.campaign.recorder import Recorder
from evomerge.campaign.rungs import build_rungs
from evomerge.campaign.setup import Setup
from evomerge.common.errors import EvomergeError
from evomerge.study.record import Evaluation
from evomerge.study.sessions import begin_session
from evomerge.study.study import Study
from evomerge.workers.job import Executor


class Campaign:
    """One run of a campaign over its study; `run`, `choose` and `race` differ in how it ends.

    Each raises EvomergeError if the base model itself cannot be scored, or there is no winner.
    """

    def __init__(
        self,
        setup: Setup,
        study: Study,
        executor: Executor,
        listener: Listener,
        elsewhere: Mapping[tuple[str, str], Evaluation] | None = None,
        snapshot: Path | None = None,
    ) -> None:
        """Bring the set-up's optimizer to the state of the record.

        Args:
            setup: the campaign's, with a new optimizer.
            study: its record.
            executor: measures candidates.
            listener: is told what happens.
            elsewhere: what other studies know, by digest and split; copied, not measured again.
            snapshot: the file of the optimizer's state; None: the record is replayed whole.
        """
        self._executor, self._listener = executor, listener
        self._record = Recorder(with_ends(setup, study), study, listener, snapshot)
        listener.on_record(self._record.known.values())
        self._evaluator = Evaluator(self._record, executor, listener, elsewhere or {})
        self._in_flight = self._evaluator.in_flight

    @property
    def _setup(self) -> Setup:
        return self._record.setup

    def run(self, deadline: float | None = None) -> None:
        """Search until the budget or `deadline` (time.monotonic), choose the winner, test it."""
        with self._session(deadline):
            self._search(deadline)
            winner = self._choose()
            choice.note_test_opened(self._record, winner)
            self._evaluator.measure_references("test")
            tested = [winner, *choice.front_to_test(self._record)]
            once = {one.digest: finalist(one, "test") for one in tested}
            self._evaluator.measure("test", list(once.values()))
            self._evaluator.measure_audit(winner)
            choice.note_overlap(self._record)
            choice.note_concluded(self._record, winner)

    def choose(self, deadline: float | None = None) -> bool:
        """Search, and choose the winner; False if `deadline` came before the budget was spent."""
        with self._session(deadline):
            self._search(deadline)
            if self._record.budget_left():
                return False
            choice.note_concluded(self._record, self._choose())
            return True

    def race(self) -> None:
        """Search, then measure on select every trial that was the best of the search for a time."""
        with self._session():
            self._search()
            self._evaluator.measure_references("select")
            leaders = choice.leaders(self._record)
            self._evaluator.measure("select", [finalist(trial, "select") for trial in leaders])

    @contextmanager
    def _session(self, deadline: float | None = None) -> Iterator[None]:
        """Record the session; on Ctrl-C, do not count in-flight candidates as failed attempts."""
        wanted = self._setup.config.workers.count
        workers = self._executor.workers if wanted == "auto" else wanted
        begin_session(self._record.study, workers, deadline)
        try:
            yield
            self._in_flight.log.save_reuse()
        except (KeyboardInterrupt, EvomergeError):
            self._record.study.stop_waiting()
            self._in_flight.uncount()
            with suppress(EvomergeError):
                self._in_flight.log.save_reuse()
            raise
        finally:
            self._record.keep_state()

    def _search(self, deadline: float | None = None) -> None:
        """Measure parents and baselines; then try what the optimizer proposes."""
        self._evaluator.measure_references("search")
        work = self._record, self._executor, self._in_flight, self._listener
        descend_before_search(*work, deadline)
        self._record.begin_search()
        judge, trials = self._record.judge("search"), self._record.trials
        self._evaluator.rungs = build_rungs(self._setup, self._record.study, judge, self._listener)
        self._listener.phase("search", len(trials), self._setup.config.budget.trials)
        proposals = self._in_flight.proposals(self._setup.optimizer, trials)
        if remark := self._setup.optimizer.remark():
            self._listener.said(f"{self._setup.config.optimizer.kind}: {remark}")
        self._evaluator.run_until_idle(proposals, lambda: self._may_ask(deadline), deadline)

    def _may_ask(self, deadline: float | None) -> bool:
        idle = self._in_flight.mostly_waiting  # asking more would only give more of the same
        begun = len(self._in_flight), self._evaluator.begun_items
        return in_time(deadline) and not idle and self._record.budget_left(*begun)

    def _choose(self) -> Evaluation:
        """The finalist that is preferred on select; where asked for, among polished ones too."""
        found = choice.choose_finalists(self._record)
        self._evaluator.measure_references("select")
        self._evaluator.measure("select", [finalist(trial, "select") for trial in found])
        ranked = choice.rank_on_select(self._record, found)
        if self._setup.config.polish is None:
            return ranked[0]
        # 1. descend from the best
        top = ranked[: self._setup.config.polish.top]
        ends = polish(self._record, self._executor, self._in_flight, self._listener, top)
        # 2. score the ends, and let those that could be scored stand in the choice
        self._evaluator.measure("polished on search", ends)
        polished = choice.polished_of(self._record, found)
        self._evaluator.measure("polished on select", [finalist(end, "select") for end in polished])
        return choice.rank_on_select(self._record, [*found, *polished])[0]
