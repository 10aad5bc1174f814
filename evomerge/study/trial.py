"""An evaluation as an Optuna trial: what Optuna itself is told of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from evomerge.study import codec
from evomerge.study.record import Evaluation

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
"""Measured on all items; stopped on a rung; failed."""


def from_trial(trial: FrozenTrial) -> Evaluation | None:
    """The evaluation in a finished trial, or None when evomerge did not write it, or not whole."""
    return codec.decode_evaluation(
        trial.user_attrs,
        trial.system_attrs,
        value=_value(trial),
        params=trial.params,
        number=trial.number,
        finished=utc(trial.datetime_complete),
    )


def state_of(evaluation: Evaluation) -> TrialState:
    """What Optuna calls it. Only COMPLETE trials can be a study's best."""
    if evaluation.failed:
        return TrialState.FAIL
    return TrialState.PRUNED if evaluation.estimated else TrialState.COMPLETE


def intermediate_values(evaluation: Evaluation) -> dict[int, float]:
    """Items measured → the value estimated from them; of a pruned trial the last is its own."""
    values = {step.n: step.value for step in evaluation.steps}
    if evaluation.estimated and evaluation.value is not None:
        values[max([evaluation.n, *values])] = evaluation.value
    return values


def _value(trial: FrozenTrial) -> float | None:
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        return trial.intermediate_values[max(trial.intermediate_values)]
    return trial.value if trial.state == TrialState.COMPLETE else None


def constraints_of(evaluation: Evaluation) -> dict[str, float] | None:
    """What Optuna takes for violated when it is above 0."""
    if not evaluation.optimizers_own:
        return {"optimizers_own": 1.0}
    return {"violation": evaluation.violation} if evaluation.violation > 0 else None


def clip(value: Any, distribution: BaseDistribution) -> Any:
    """A param's value without the rounding excess that Optuna refuses."""
    if not isinstance(distribution, FloatDistribution):
        return value
    return min(max(float(value), distribution.low), distribution.high)


def utc(moment: datetime | None) -> datetime | None:
    """Optuna hands out local time without a zone."""
    return None if moment is None else moment.astimezone(UTC)
