"""Tell trackers of what a campaign records: every trial once, and no harm if one of them fails."""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

from typing_extensions import override

from evomerge.campaign.listener import Listener
from evomerge.judging.scores import Judge
from evomerge.judging.selection import Judged, best
from evomerge.results.results import Results
from evomerge.results.verdict_words import verdict_lines
from evomerge.study.judged import judged
from evomerge.study.record import Evaluation
from evomerge.study.study import Study
from evomerge.trackers import Outcome, Run, Tracker

CLOSE_SECONDS = {"finished": 60.0, "failed": 60.0, "stopped": 10.0}
"""Seconds that trackers have after the run to take in what is left, by its outcome."""


@contextmanager
def tracked(
    trackers: Mapping[str, Tracker], study: Study, folder: Path, listener: Listener
) -> Iterator[Listener]:
    """Yield a listener that also tells trackers what is recorded, and in the end how it ended.

    Args:
        trackers: by the names that messages give them.
        folder: the run's.
        listener: is told everything, and what the trackers say.
    """
    if not trackers:
        yield listener
        return
    dispatch = TrackerDispatch(trackers, study, folder, listener)
    outcome = Outcome("stopped")
    try:
        yield dispatch
        outcome = _outcome(study)
    except Exception as error:
        outcome = Outcome("failed", reason=str(error))
        raise
    finally:
        dispatch.close(outcome)


class TrackerDispatch(Listener):
    """A campaign's listener: passes on what it hears, and tells trackers what is recorded."""

    def __init__(
        self,
        trackers: Mapping[str, Tracker],
        study: Study,
        folder: Path,
        listener: Listener,
    ) -> None:
        """Begin every tracker, each in a thread, and tell it the record so far."""
        self._study, self._listener = study, listener
        self._leader: Judged[Evaluation] | None = None
        self._judge: Judge | None = None
        self._messages: SimpleQueue[str] = SimpleQueue()
        record = study.evaluations()
        run = Run(
            name=study.name,
            folder=folder,
            uid=_uid(study),
            campaign=study.campaign,
            trials=1 + max((e.number or 0 for e in record), default=-1),
            stage=study.note("stage"),
            done=Results(study).concluded,
            say=self._messages.put,
        )
        self._threads = [TrackerThread(name, tracker, run) for name, tracker in trackers.items()]
        for evaluation in record:
            self._tell(evaluation)

    @override
    def on_record(self, evaluations: Iterable[Evaluation]) -> None:
        self._listener.on_record(evaluations)

    @override
    def phase(self, name: str, done: int, total: int) -> None:
        self._listener.phase(name, done, total)
        self._say()

    @override
    def recorded(self, evaluation: Evaluation) -> None:
        self._listener.recorded(evaluation)
        self._tell(evaluation)
        self._say()

    @override
    def said(self, message: str) -> None:
        self._listener.said(message)

    def close(self, outcome: Outcome) -> None:
        """Tell trackers the outcome, and wait a while for those who have not taken in all."""
        deadline = time.monotonic() + CLOSE_SECONDS[outcome.kind]
        for thread in self._threads:
            thread.end(outcome)
        for thread in self._threads:
            if not thread.done(max(0.0, deadline - time.monotonic())):
                self._messages.put(f"{thread.name} has not taken in all, and is left behind")
        self._say()

    def _tell(self, evaluation: Evaluation) -> None:
        leader = self._leading(evaluation)
        for thread in self._threads:
            thread.record(evaluation, leader)

    def _leading(self, evaluation: Evaluation) -> Evaluation | None:
        """Return the best trial by the time of this evaluation."""
        if evaluation.optimizers_own:
            if self._judge is None:  # the parents are on record by now
                self._judge = Results(self._study).judges["search"]
            rivals = [self._leader, *judged(self._judge, [evaluation])]
            self._leader = best([rival for rival in rivals if rival is not None])
        return self._leader.trial if self._leader else None

    def _say(self) -> None:
        """Pass on what trackers had to say, in the campaign's own thread."""
        while True:
            try:
                self._listener.said(self._messages.get_nowait())
            except Empty:
                return


class TrackerThread:
    """Runs one tracker in a thread of its own."""

    def __init__(self, name: str, tracker: Tracker, run: Run) -> None:
        """Begin at once; an error is told through `run.say`, and ends the thread."""
        self.name = name
        self._tracker, self._run = tracker, run
        self._queue: SimpleQueue[tuple[Evaluation, Evaluation | None] | Outcome] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def record(self, evaluation: Evaluation, leader: Evaluation | None) -> None:
        """Queue an evaluation, with the best trial by then."""
        if self._thread.is_alive():
            self._queue.put((evaluation, leader))

    def end(self, outcome: Outcome) -> None:
        """Queue the outcome, which is told last."""
        self._queue.put(outcome)

    def done(self, seconds: float) -> bool:
        """Wait so many seconds at most; return whether it has taken in all."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            self._tell_all()
        except Exception as error:  # whatever it is, it is the tracker's and not the campaign's
            reason = str(error).strip().partition("\n")[0]
            self._run.say(
                f"{self.name} is switched off ({type(error).__name__}: {reason}); "
                "the campaign goes on"
            )

    def _tell_all(self) -> None:
        # 1. The first trial to tell: the tracker says it, or the run's folder does.
        first = self._tracker.begin(self._run)
        position = TrackerPosition(self._run.folder, self.name) if first is None else None
        if position is not None:
            first = position.read()
        # 2. Every trial from there on, until the outcome.
        while not isinstance(message := self._queue.get(), Outcome):
            evaluation, leader = message
            number = evaluation.number or 0
            if number >= (first or 0):
                if position is not None:
                    # Before it is told, so that a kill in between tells nothing twice.
                    position.write(number + 1)
                self._tracker.record(evaluation, leader)
        self._tracker.end(message)


class TrackerPosition:
    """Keeps the number of the next trial to tell a tracker, in a file of the run's folder."""

    def __init__(self, folder: Path, name: str) -> None:
        """Name the file after the tracker, in safe letters."""
        self._path = folder / "trackers" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.next"

    def read(self) -> int:
        """Read the number of the first trial that the tracker was not told of."""
        return int(self._path.read_text()) if self._path.exists() else 0

    def write(self, number: int) -> None:
        """Replace the file, whole or not at all."""
        self._path.parent.mkdir(exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(str(number))
        os.replace(partial, self._path)


def _uid(study: Study) -> str:
    """Return the study's own id; make and record it at the first call."""
    uid = study.note("uid")
    if uid is None:
        uid = uuid.uuid4().hex[:16]
        study.set_note("uid", uid)
    return str(uid)


def _outcome(study: Study) -> Outcome:
    results = Results(study)
    if results.concluded:
        found = results.best()
        said = " ".join(verdict_lines(found["verdict"]))
        return Outcome("finished", summary=found, verdict=said)
    return Outcome("stopped")
