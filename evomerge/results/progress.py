"""A campaign's progress: cost, workers at work, pace, and the time left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.study.record import POLISHED, Evaluation, Marker
from evomerge.study.sessions import Session, sessions
from evomerge.study.study import Study

RECENT = 50
"""Number of trials of the last session whose pace gives the time left."""
BINS = 60
"""Bins of the curve of workers at work."""
NOTHING_YET: dict[str, Any] = {
    "trials": {"time": [], "count": []},
    "items": {"time": [], "count": []},
    "time": 0.0,
    "sessions": [],
    "busy": None,
}


@dataclass(frozen=True)
class Clock:
    """Running time: the sessions' wall time one after the other, without what lies between.

    A session ends with its last record; time after it is not known, and not counted.

    Attributes:
        sessions: those in which anything was recorded.
        finished: time of each evaluation's record, seconds since the epoch, shape (n,).
        session: index of the session that recorded each evaluation, shape (n,).
        starts: of the sessions, seconds since the epoch.
        ends: of the sessions, seconds since the epoch.
    """

    sessions: Sequence[Session]
    finished: NDArray[np.float64]
    session: NDArray[np.int64]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]

    @property
    def offsets(self) -> NDArray[np.float64]:
        """Running time at which each session begins, then that at which the last ends."""
        return np.concatenate([[0.0], np.cumsum(self.ends - self.starts)])

    def running(self) -> NDArray[np.float64]:
        """Give the running time at which each evaluation was recorded, shape (n,)."""
        return self.offsets[self.session] + self.finished - self.starts[self.session]


def clock_of(study: Study, evaluations: Sequence[Evaluation]) -> Clock | None:
    """Make the clock of a study; None as long as nothing is recorded."""
    timed = [e for e in evaluations if e.finished]
    return _clock(timed, sessions(study), _asked_for(study)) if timed else None


def running_summary(
    study: Study, evaluations: Sequence[Evaluation], clock: Clock | None
) -> dict[str, Any]:
    """Sum up cost, pace and utilisation of a study; times in seconds.

    Args:
        study: the record.
        evaluations: all of it.
        clock: of these; see `clock_of`.

    Returns:
        `driven`: true while a driver is at work, null where that cannot be told from here;
        `in_flight`: for each candidate in flight `slot`, `split`, `ask`, `rung`, `attempt`; none
        when the driver is known to have stopped;
        `workers`: number in the last session;
        `repeated`: evaluations that took more than one attempt: a worker or the driver died;
        `rate`: trials a second lately, null before the second trial;
        `left`: until the budget or the session's time is spent at that rate, null where unknown, 0
        once the budget is spent;
        `trials`, `items`: `time` → count, over running time; `budget`, `item_budget`;
        `time`: running time in all; `sessions`: `time` (at which each begins), `started`,
        `workers`;
        `busy`: `time` (BINS + 1 edges), `workers` (the mean number at work in each bin), `share` of
        the workers' time, null before anything is known;
        `cost`: purpose → stage → seconds of one worker.
    """
    timed = [e for e in evaluations if e.finished]
    return {
        **pace_summary(study, evaluations, clock),
        "repeated": sum(e.attempt > 1 for e in timed),
        "budget": study.campaign["budget"]["trials"],
        "item_budget": study.campaign["budget"].get("items"),
        "cost": _cost(timed),
        **(_over_time(study, timed, clock) if clock else NOTHING_YET),
    }


def pace_summary(
    study: Study, evaluations: Sequence[Evaluation], clock: Clock | None
) -> dict[str, Any]:
    """Sum up what is in flight, and how long the rest will take: as `running_summary`, `driven`,
    `in_flight`, `workers`, `rate` and `left`.

    Args:
        study: the record.
        evaluations: all of it.
        clock: of these; see `clock_of`.
    """
    noted, driven = sessions(study), study.driven
    timed = [e for e in evaluations if e.finished]
    rate = left = None
    if clock is not None:
        mine = np.array([e.optimizers_own for e in timed])
        rate = _rate(clock.finished[mine & (clock.session == clock.session.max())])
        left = 0.0 if is_concluded(study, timed) else _left(study, timed, rate, clock)
    return {
        "driven": driven,
        "in_flight": [] if driven is False else [_in_flight(m) for m in study.markers()],
        "workers": noted[-1].workers if noted else _asked_for(study),
        "rate": rate,
        "left": left,
    }


def _asked_for(study: Study) -> int:
    """Number of workers in the campaign file."""
    count = study.campaign["workers"]["count"]
    return 1 if count == "auto" else int(count)


def split_size(study: Study, split: str) -> int:
    """Count the items of a split; measures beside a task have its items, and add none."""
    beside = {task["task"] for task in study.note("tasks") or [] if task["weight"] == 0}
    items = study.items().get(split, {})
    return sum(len(ids) for task, ids in items.items() if task not in beside)


def is_concluded(study: Study, evaluations: Sequence[Evaluation]) -> bool:
    """Tell whether a winner was chosen and no trial has been recorded since."""
    noted = (study.note("concluded") or {}).get("trials")
    return noted is not None and noted == sum(e.optimizers_own for e in evaluations)


State = Literal["running", "selecting", "testing", "done", "stage done", "stopped", "dead"]


def state_of(study: Study, evaluations: Sequence[Evaluation], spent: bool) -> State | None:
    """Tell how a campaign stands; None where it cannot be told whether a driver is at work.

    Args:
        evaluations: all of the study.
        spent: whether the search's budget is.

    Returns:
        `running`: parents, baselines or trials are scored on search; `selecting`, `testing`: the
        finalists, the winner are scored; `done`; `stage done`: of a stage that others follow;
        `stopped`: in order; `dead`: the driver is gone without an end.
    """
    if is_concluded(study, evaluations):
        stage = study.note("stage")
        return "done" if stage is None or stage["place"] == stage["of"] else "stage done"
    driver = study.driver
    if driver != "at work":
        return driver
    own = [e.number or 0 for e in evaluations if e.optimizers_own]
    opened = study.note("test_opened") or []
    if opened and opened[-1]["trials"] == len(own):
        return "testing"
    # a deadline may end the search before its budget: what is scored then tells
    last = max(own, default=-1)
    since = {e.split for e in evaluations if (e.number or 0) > last}
    on_select = "select" in {*since, *(marker.split for marker in study.markers())}
    return "selecting" if own and (spent or on_select) else "running"


def _over_time(study: Study, evaluations: Sequence[Evaluation], clock: Clock) -> dict[str, Any]:
    own = [e for e in evaluations if e.optimizers_own]
    mine = np.array([e.optimizers_own for e in evaluations])
    time, whole = clock.running(), split_size(study, "search")
    before = sum(one.items for one in study.descents())
    return {
        "trials": _counts(time[mine], np.arange(1, len(own) + 1)),
        "items": _counts(time[mine], before + np.cumsum([e.cost(whole) for e in own], dtype=int)),
        "time": float(clock.offsets[-1]),
        "sessions": [
            {"time": float(at), "started": s.started.isoformat(), "workers": s.workers}
            for at, s in zip(clock.offsets, clock.sessions, strict=False)
        ],
        "busy": _busy(clock, evaluations, is_concluded(study, evaluations)),
    }


def _in_flight(marker: Marker) -> dict[str, Any]:
    return {
        "slot": marker.slot,
        "split": marker.split,
        "ask": marker.ask,
        "rung": len(marker.progress.results) if marker.progress else None,
        "attempt": marker.attempt,
    }


def _counts(time: NDArray[np.float64], count: NDArray[np.int64]) -> dict[str, list[float]]:
    return {"time": time.tolist(), "count": count.tolist()}


def _clock(evaluations: Sequence[Evaluation], noted: Sequence[Session], workers: int) -> Clock:
    """Make the clock; records from before the first noted session are a session of their own."""
    # 1. a first session for records of older studies, which noted none
    finished = np.array([e.finished.timestamp() for e in evaluations if e.finished])
    spent = np.array([_seconds(e) for e in evaluations])
    begun = list(noted)
    if not begun or finished.min() < begun[0].started.timestamp():
        first = datetime.fromtimestamp(float((finished - spent).min()), UTC)
        begun.insert(0, Session(first, workers))
    # 2. the session of each record: the last that began before it
    starts = np.array([s.started.timestamp() for s in begun])
    session = np.maximum(np.searchsorted(starts, finished, side="right") - 1, 0)
    # 3. sessions that recorded something, each ending with its last record
    used = np.flatnonzero(np.bincount(session))
    session = np.searchsorted(used, session)
    ends = np.array([finished[session == place].max() for place in range(len(used))])
    return Clock([begun[i] for i in used], finished, session, starts[used], ends)


def _rate(finished: NDArray[np.float64]) -> float | None:
    """Trials a second over the last `RECENT` of one session."""
    lately = np.sort(finished)[-RECENT:]
    span = float(lately[-1] - lately[0]) if len(lately) > 1 else 0.0
    return (len(lately) - 1) / span if span > 0 else None


def _left(
    study: Study, evaluations: Sequence[Evaluation], rate: float | None, clock: Clock
) -> float | None:
    """Seconds until the first of these is spent: trials, items, the session's own time."""
    if rate is None:
        return None
    own, budget = [e for e in evaluations if e.optimizers_own], study.campaign["budget"]
    left = [(budget["trials"] - len(own)) / rate]
    if budget.get("items") is not None:
        lately, whole = own[-RECENT:], split_size(study, "search")
        each = sum(e.cost(whole) for e in lately) / len(lately)
        before = sum(one.items for one in study.descents())
        spent = before + sum(e.cost(whole) for e in own)
        left.append((budget["items"] - spent) / (rate * each))
    until, now = clock.sessions[-1].until, datetime.now(UTC)
    if until is not None and until > now:
        left.append((until - now).total_seconds())
    return max(0.0, float(min(left)))


def _busy(clock: Clock, evaluations: Sequence[Evaluation], concluded: bool) -> dict[str, Any]:
    """Count the workers at work, over running time.

    An evaluation is taken to have ended when it was recorded, and to have been at work without a
    break. While the search goes on, the last evaluation's length is left out at the end: what is
    in flight is not recorded yet.
    """
    # 1. the end of what is known
    end, time = clock.offsets[-1], clock.running()
    spent = np.array([_seconds(e) for e in evaluations])
    if not concluded:
        longest = float(spent[-2 * clock.sessions[-1].workers :].max())
        end = max(end - longest, clock.offsets[-2]) or end
    # 2. seconds of work by each edge of the bins; differences give each bin's
    edges = np.linspace(0.0, end, BINS + 1)
    began = np.maximum(time - spent, clock.offsets[clock.session])
    done = np.clip(edges[:, None], began, time) - began  # (edges, evaluations)
    at_work = np.diff(done.sum(axis=1))
    # 3. the share of the time that all workers of all sessions had
    each = np.array([s.workers for s in clock.sessions])
    there = np.clip(end - clock.offsets[:-1], 0.0, np.diff(clock.offsets))
    capacity = float(each @ there)
    return {
        "time": edges.tolist(),
        "workers": (at_work / np.maximum(np.diff(edges), 1e-9)).tolist(),
        "share": float(at_work.sum() / capacity) if capacity > 0 else None,
    }


def _cost(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, float]]:
    """Purpose → stage → seconds of one worker."""
    found: dict[str, dict[str, float]] = {}
    for e in evaluations:
        stages = found.setdefault(_purpose(e), {})
        for stage, seconds in e.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    return {purpose: stages for purpose, stages in found.items() if stages}


def _purpose(e: Evaluation) -> str:
    if e.split != "search":
        return e.split
    if e.role == POLISHED:
        return "polish"
    if not e.optimizers_own:
        return "parents and baselines"
    return "trials pruned at a rung" if e.estimated else "trials"


def _seconds(e: Evaluation) -> float:
    return sum(e.seconds.values())
