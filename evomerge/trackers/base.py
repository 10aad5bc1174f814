"""What a tracker is, how campaign files name one, and what of an evaluation is worth a curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from evomerge.common.plugins import Registry, subclass_of
from evomerge.study.record import Evaluation

MOST_GENES = 64
"""A curve for each gene of a space that has no more."""


@dataclass(frozen=True)
class Run:
    """What a tracker is told before the first trial.

    Attributes:
        name: the study's.
        folder: the run's; a tracker may make one of its own in it.
        uid: the same whenever this study is resumed, and no other study's.
        campaign: the campaign file as JSON data, without what is secret in it.
        trials: how many are on record.
        stage: of a campaign with stages: `name`, `place` (from 1), `of`.
        done: whether the search had ended before, so that only an extension makes news.
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
    """How a run ended.

    Attributes:
        kind: `finished`: the winner is chosen; `stopped`: it can go on; `failed`: so it can, but
            something went wrong.
        reason: of a failure.
        summary: of a finished one, what `evomerge best --json` prints.
    """

    kind: Literal["finished", "stopped", "failed"]
    reason: str | None = None
    summary: Mapping[str, Any] | None = None


class Tracker:
    """Told what a campaign records, in its order.

    All three are called in one thread that is the tracker's own: they may take their time, and one
    that raises switches the tracker off, not the campaign. A campaign that is resumed begins anew.
    """

    needs: ClassVar[str | None] = None
    """The package it imports; evomerge's extra of the tracker's name installs it."""

    def begin(self, run: Run) -> int | None:
        """Open what is written to.

        Returns:
            The number of the first trial that it does not hold yet; None: evomerge keeps count in
            the run's folder, so that no trial is told twice.
        """
        return None

    def record(self, evaluation: Evaluation, best: Evaluation | None) -> None:
        """An evaluation is on record, as trial `evaluation.number`.

        `best`: the search's best trial by then; it may be this one.
        """

    def end(self, outcome: Outcome) -> None:
        """The run is over."""


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
    """Every registered tracker by name, in alphabetical order."""
    return REGISTRY.all()


def numbers(evaluation: Evaluation, best: Evaluation | None) -> dict[str, float]:
    """What of an evaluation is drawn against the trial's number, by name; finite all of it."""
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
