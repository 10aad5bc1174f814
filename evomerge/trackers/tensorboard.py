"""TensorBoard: the tracker `tensorboard`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from evomerge.study.record import Evaluation
from evomerge.trackers.base import Outcome, Run, Tracker, numbers, tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LAST = "trial"
"""The tag that is written last of every trial."""


@tracker("tensorboard")
class TensorBoard(Tracker):
    """Writes curves in the run's folder: tensorboard --logdir runs."""

    needs = "tensorboard"
    _writer: SummaryWriter

    @override
    def begin(self, run: Run) -> int:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard"
        first = _next_trial(folder) if folder.is_dir() else 0
        # What was written of a trial that a kill cut short is taken back.
        self._writer = SummaryWriter(str(folder), purge_step=first or None)
        if not first:
            self._writer.add_text("campaign", _indented(run.campaign), 0)
        return first

    @override
    def record(self, evaluation: Evaluation, best: Evaluation | None) -> None:
        number = evaluation.number or 0
        moment = evaluation.finished.timestamp() if evaluation.finished else None
        for name, value in {**numbers(evaluation, best), LAST: number}.items():
            self._writer.add_scalar(name, value, number, walltime=moment)
        self._writer.flush()

    @override
    def end(self, outcome: Outcome) -> None:
        if outcome.summary:
            trial = outcome.summary["trial"]
            self._writer.add_text("verdict", outcome.verdict, trial)
            self._writer.add_text("winner", _indented(outcome.summary["recipe"]), trial)
        self._writer.close()


def _next_trial(folder: Path) -> int:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 1}).Reload()
    if LAST not in events.Tags()["scalars"]:
        return 0
    return int(events.Scalars(LAST)[-1].step) + 1


def _indented(data: object) -> str:
    """Indent JSON, so that Markdown shows it as it is."""
    lines = json.dumps(data, indent=1).splitlines()
    return "\n".join(f"    {line}" for line in lines)
