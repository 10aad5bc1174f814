"""A finished trial as it is stored, and the evaluation that it records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from evomerge.study import codec
from evomerge.study.record import Evaluation

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


class State(Enum):
    """The states of finished trials, named as Optuna names them."""

    COMPLETE = "measured on all items"
    PRUNED = "pruned on a rung"
    FAIL = "failed"


FINISHED = tuple(state.name for state in State)


@dataclass(frozen=True)
class FinishedTrial:
    """What a storage holds of a finished trial; the names are those of Optuna's `FrozenTrial`.

    Attributes:
        value: the objective's value, or the first of several; None where there is none.
        intermediate_values: number of items → value.
        params: name → natural value.
        datetime_complete: local time, without a zone.
    """

    number: int
    state: State
    value: float | None
    intermediate_values: Mapping[int, float]
    params: Mapping[str, Any]
    user_attrs: Mapping[str, Any]
    system_attrs: Mapping[str, Any]
    datetime_complete: datetime | None


def from_trial(trial: FinishedTrial | FrozenTrial) -> Evaluation | None:
    """Convert a finished trial to its evaluation; None if evomerge did not write it whole."""
    return codec.decode_evaluation(
        trial.user_attrs,
        trial.system_attrs,
        value=_value(trial),
        params=trial.params,
        number=trial.number,
        finished=utc(trial.datetime_complete),
    )


def _value(trial: FinishedTrial | FrozenTrial) -> float | None:
    if trial.state.name == State.PRUNED.name and trial.intermediate_values:
        return trial.intermediate_values[max(trial.intermediate_values)]
    return trial.value if trial.state.name == State.COMPLETE.name else None


def utc(moment: datetime | None) -> datetime | None:
    """Convert Optuna's local time, which has no zone, to UTC."""
    return None if moment is None else moment.astimezone(UTC)
