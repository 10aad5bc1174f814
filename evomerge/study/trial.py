"""Convert an evaluation to an Optuna trial; `finished_trial` converts it back."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from evomerge.study import codec
from evomerge.study.record import Evaluation

REAL_PARAMS = 64
"""Up to so many genes are Optuna params; of more, a summary (500 params cost .4 s a trial)."""
SUMMARIES: dict[str, Callable[[list[float]], float]] = {
    "genes.min": min,
    "genes.mean": statistics.fmean,
    "genes.max": max,
}


class Genes:
    """Decides Optuna's params: one per gene, or a summary of them."""

    def __init__(self, genes: Mapping[str, BaseDistribution]) -> None:
        """`genes`: each gene's distribution over its natural values."""
        self.summarised = len(genes) > REAL_PARAMS
        self.distributions = dict(genes)
        if self.summarised:
            numeric = [
                d for d in genes.values() if isinstance(d, FloatDistribution | IntDistribution)
            ]
            low = min((float(d.low) for d in numeric), default=0.0)
            high = max((float(d.high) for d in numeric), default=0.0)
            self.distributions = dict.fromkeys(SUMMARIES, FloatDistribution(low, high))

    def params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Convert gene → value to Optuna's params, clipped to their bounds."""
        if self.summarised and values:
            numbers = [float(v) for v in values.values() if not isinstance(v, str)] or [0.0]
            values = {name: summary(numbers) for name, summary in SUMMARIES.items()}
        return {name: clip(value, self.distributions[name]) for name, value in values.items()}


def to_trial(evaluation: Evaluation, genes: Genes) -> FrozenTrial:
    """Convert an evaluation to a trial, whole but for its number."""
    params = genes.params(evaluation.params)
    plain, packed = codec.attributes(evaluation, with_params=genes.summarised and bool(params))
    trial = create_trial(
        state=state_of(evaluation),
        value=None if evaluation.estimated else evaluation.value,
        intermediate_values=intermediate_values(evaluation),
        params=params,
        distributions={name: genes.distributions[name] for name in params},
        user_attrs=plain,
        system_attrs=packed,
        # Optuna's `best_trial` considers feasible trials only: a reference, or a score on a
        # later split, violates this constraint and can never be the study's best.
        constraints=constraints_of(evaluation),
    )
    finished = (evaluation.finished or datetime.now(UTC)).astimezone().replace(tzinfo=None)
    trial.datetime_start = finished - timedelta(seconds=sum(evaluation.seconds.values()))
    trial.datetime_complete = finished
    return trial


def state_of(evaluation: Evaluation) -> TrialState:
    """The trial's state; only COMPLETE trials can be a study's best."""
    if evaluation.failed:
        return TrialState.FAIL
    return TrialState.PRUNED if evaluation.estimated else TrialState.COMPLETE


def intermediate_values(evaluation: Evaluation) -> dict[int, float]:
    """Number of items → value estimated from them; a pruned trial's own value is the last."""
    values = {result.n: result.value for result in evaluation.rungs}
    if evaluation.estimated and evaluation.value is not None:
        values[max([evaluation.n, *values])] = evaluation.value
    return values


def constraints_of(evaluation: Evaluation) -> dict[str, float] | None:
    """Optuna's constraints, each violated when above 0."""
    if not evaluation.optimizers_own:
        return {"optimizers_own": 1.0}
    return {"violation": evaluation.violation} if evaluation.violation > 0 else None


def clip(value: Any, distribution: BaseDistribution) -> Any:
    """Clip a param to its bounds: Optuna refuses rounding excess."""
    if not isinstance(distribution, FloatDistribution):
        return value
    return min(max(float(value), distribution.low), distribution.high)
