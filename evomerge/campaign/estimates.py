"""The score estimator: it learns from candidates measured on all items, and is checked by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from evomerge.campaign.listener import Listener
from evomerge.judging.constraints import Items
from evomerge.judging.estimators import Estimates, Estimator
from evomerge.judging.estimators.calibration import Counted
from evomerge.judging.estimators.mean import mean
from evomerge.judging.estimators.responses import estimator_of
from evomerge.study.judged import check_of
from evomerge.study.record import Evaluation

GROWTH = 1.5
"""The estimator is fitted anew once so many times as many models are measured as for the last."""
MOST = 100
"""Number of models that a fit rests on, the latest ones."""


class ScoreEstimator:
    """Estimates scores from the record alone: the same record gives the same estimates."""

    def __init__(
        self,
        name: str,
        rungs: Sequence[Mapping[str, NDArray[np.int64]]],
        references: Mapping[str, Items],
        listener: Listener,
    ) -> None:
        """Begin with the references alone.

        Args:
            name: of the estimator, as in `fitness.estimator`.
            rungs: of each below the last, task → places of its items.
            references: digest → items, of parents and baselines.
            listener: is told when the estimator is switched off.
        """
        self._name = name
        self._rungs = rungs
        self._full: dict[str, Items | Evaluation] = dict(references)  # in the order of arrival
        self._listener = listener
        self._checked = Counted()
        self._fitted_to = 0
        self._due = len(self._full)
        self._estimator: Estimator = mean

    def __call__(self, items: Items) -> Estimates:
        """Estimate task → mean over all items and its standard error.

        `items`: task → scores, NaN where not measured.
        """
        if self._name != "mean" and self._fitted_to < self._due:
            self._fit()
        return self._estimator(items)

    def learn(self, trial: Evaluation) -> None:
        """Take in a trial that was measured on all items, and check what was estimated of it."""
        # 1. The next fit is due at 1.5, 1.5², … times the references.
        self._full.setdefault(trial.digest, trial)
        while GROWTH * self._due <= len(self._full):
            self._due = int(np.ceil(GROWTH * self._due))
        # 2. Too few true scores within the estimates' intervals switch the estimator off.
        check = check_of(trial)
        if check is None or self._name == "mean":
            return
        self._checked = found = self._checked.plus(check)
        if found.off:
            self._switch_off(
                f"of {found.of} candidates that reached the top, only {found.covered} scored "
                "within the 90 % interval estimated on the lowest rung"
            )

    def _fit(self) -> None:
        latest = islice(self._full.values(), max(0, self._due - MOST), self._due)
        models = [one.scores if isinstance(one, Evaluation) else one for one in latest]
        try:
            self._estimator = estimator_of(self._name, models, self._rungs)
        except ValueError as error:
            self._switch_off(str(error))
        self._fitted_to = self._due

    def _switch_off(self, why: str) -> None:
        self._listener.said(f"fitness.estimator: {self._name} is switched off for mean: {why}")
        self._name, self._estimator = "mean", mean
