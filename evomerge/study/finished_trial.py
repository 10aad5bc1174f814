"""A finished trial as it is stored, and the evaluation that it records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from evomerge.study import codec
from evomerge.study.record import Evaluation
from evomerge.study.stored import MemoryParts, StoredFacts, stored

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
    if not is_whole(trial):
        return None
    parts = MemoryParts(trial.user_attrs, trial.system_attrs, trial.params)
    return stored(facts_of(trial), parts)


def is_whole(trial: FinishedTrial | FrozenTrial) -> bool:
    """Tell whether evomerge wrote a finished trial, and all of it can be read."""
    found = codec.decode_evaluation(
        trial.user_attrs,
        trial.system_attrs,
        value=_value(trial),
        params=trial.params,
        number=trial.number,
        finished=None,
    )
    return found is not None


def facts_of(trial: FinishedTrial | FrozenTrial, key: int = 0) -> StoredFacts:
    """Sum a finished trial up; `key`: of it in its storage."""
    moment = trial.datetime_complete
    return StoredFacts(
        key=key,
        number=trial.number,
        value=_value(trial),
        plain=trial.user_attrs,
        rare=trial.system_attrs,
        finished=None if moment is None else moment.astimezone(UTC),
    )


def _value(trial: FinishedTrial | FrozenTrial) -> float | None:
    if trial.state.name == State.PRUNED.name and trial.intermediate_values:
        return trial.intermediate_values[max(trial.intermediate_values)]
    return trial.value if trial.state.name == State.COMPLETE.name else None


def local(moment: datetime) -> datetime:
    """Convert a moment to Optuna's local time, which has no zone."""
    return moment.astimezone().replace(tzinfo=None)
