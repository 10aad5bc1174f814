"""The tracker: its interface, its registry, and the numbers of an evaluation that are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from evomerge.common.plugins import Registry, subclass_of
from evomerge.study.record import Evaluation

MOST_GENES = 64
"""Genes are drawn, a curve each, in spaces that have no more than these."""


@dataclass(frozen=True)
class Run:
    """Describes a run to a tracker, before the first trial.

    Attributes:
        name: the study's.
        folder: the run's; a tracker may make one of its own in it.
        uid: the study's own id, the same after every resume.
        campaign: the campaign file as JSON data, without secrets.
        trials: number of trials on record.
        stage: of a campaign with stages: `name`, `place` (from 1), `of`.
        done: the search had ended before this run began.
        say: shows the user a line.
    """

    name: str
    folder: Path
    uid: str
    campaign: Mapping[str, Any]
    trials: int
    stage: Mapping[str, Any] | None
    done: bool
    say: Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """Describes how a run ended.

    Attributes:
        kind: `finished`: the winner is chosen; `stopped`: the run can go on; `failed`: it ended
            with an error, and can go on.
        reason: the error's message.
        summary: of a finished run, as `evomerge best --json` prints it.
        verdict: of a finished run, in plain sentences: whether its best merge beats the parents.
    """

    kind: Literal["finished", "stopped", "failed"]
    reason: str | None = None
    summary: Mapping[str, Any] | None = None
    verdict: str = ""


class Tracker:
    """Is told what a campaign records, in its order.

    The three methods are called in a thread of the tracker's own: they may take their time, and an
    error in one switches the tracker off, not the campaign. A resumed campaign calls `begin` again.
    """

    needs: ClassVar[str | None] = None
    """The package it imports, which evomerge's extra of the tracker's name installs."""

    def begin(self, run: Run) -> int | None:
        """Open what is written to.

        Returns:
            The number of the first trial that it does not hold yet; or None, and evomerge keeps
            that number in the run's folder, so that no trial is told twice.
        """
        return None

    def record(self, evaluation: Evaluation, best: Evaluation | None) -> None:
        """Take in an evaluation, which is on record as trial `evaluation.number`.

        `best`: the search's best trial by then; it may be this one.
        """

    def end(self, outcome: Outcome) -> None:
        """Take in how the run ended."""


REGISTRY = Registry[type[Tracker]](
    kind="tracker",
    package="evomerge.trackers",
    group="evomerge.trackers",
    accept=subclass_of(Tracker, "evomerge.trackers.Tracker"),
)


def tracker(name: str) -> Callable[[type[Tracker]], type[Tracker]]:
    """Register a class as the tracker called `name` in campaign files."""
    return lambda kind: REGISTRY.add(name, kind)


def trackers() -> Mapping[str, type[Tracker]]:
    """Return every registered tracker by name, in alphabetical order."""
    return REGISTRY.all()


def numbers(evaluation: Evaluation, best: Evaluation | None) -> dict[str, float]:
    """Return the finite numbers of an evaluation by name, to be drawn over the trial's number."""
    split = evaluation.split
    if not evaluation.optimizers_own:
        named = f"{evaluation.role}/{evaluation.name}" if evaluation.name else evaluation.role
        found = {f"{split}/{named}": evaluation.value}
    else:
        what = "estimate" if evaluation.estimated else "value"
        tasks = {} if evaluation.estimated else evaluation.scores
        params = evaluation.params if len(evaluation.params) <= MOST_GENES else {}
        genes = {k: v for k, v in params.items() if not isinstance(v, str)}
        found = {
            "search/best": best.value if best else None,
            f"search/{what}": evaluation.value,
            "search/failed": float(evaluation.failed),
            **{f"task/{task}": float(values.mean()) for task, values in tasks.items()},
            **{f"gene/{gene}": float(value) for gene, value in genes.items()},
            **{f"optimizer/{name}": float(value) for name, value in evaluation.state.items()},
        }
    seconds = {f"seconds/{stage}": spent for stage, spent in evaluation.seconds.items()}
    return {k: v for k, v in (found | seconds).items() if v is not None and math.isfinite(v)}
