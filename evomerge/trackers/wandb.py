"""Weights & Biases: the tracker `wandb`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from evomerge.study.record import Evaluation
from evomerge.trackers.base import Outcome, Run, Tracker, numbers, tracker

if TYPE_CHECKING:
    import wandb


@tracker("wandb")
class WandB(Tracker):
    """Writes a run of a Weights & Biases project; with mode: offline, in the run's folder.

    Example: `kind: wandb, project: merges, entity: team, mode: offline`
    """

    needs = "wandb"
    _run: wandb.Run

    def __init__(
        self,
        *,
        project: str | None = None,
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
    ) -> None:
        """Choose where; what is not given is as wandb's own environment variables say.

        Args:
            project: the project's name; by default WANDB_PROJECT, else the campaign's name.
            entity: the user or team that the project belongs to.
            mode: whether to send or only to keep; by default WANDB_MODE, else online.
        """
        self._project, self._entity, self._mode = project, entity, mode

    @override
    def begin(self, run: Run) -> int | None:
        import wandb

        mode = self._mode or os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("no API key; run `wandb login`, or write mode: offline")
        self._run = wandb.init(
            project=self._project or os.environ.get("WANDB_PROJECT") or str(run.campaign["name"]),
            entity=self._entity,
            mode=self._mode,
            id=run.uid,
            name=run.name,
            resume="allow",
            dir=run.folder,
            config=dict(run.campaign),
            settings=wandb.Settings(console="off", silent=True),
        )
        # Offline it does not know what it was told before.
        return None if self._run.offline else self._run.step

    @override
    def record(self, evaluation: Evaluation, best: Evaluation | None) -> None:
        self._run.log(numbers(evaluation, best), step=evaluation.number)

    @override
    def end(self, outcome: Outcome) -> None:
        if outcome.summary:
            self._run.summary["winner"] = dict(outcome.summary["recipe"])
            self._run.summary["verdict"] = outcome.verdict
            self._run.summary["scores"] = dict(outcome.summary["scores"])
        self._run.finish(exit_code=int(outcome.kind == "failed"))
