"""Read the best trials of any Optuna study, evomerge's own or another's; nothing is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from evomerge.common.errors import InputError
from evomerge.judging.selection import finalists
from evomerge.study.record import POLISHED
from evomerge.study.storage import close, open_for_reading
from evomerge.study.storage_errors import errors_explained
from evomerge.study.storage_url import describe
from evomerge.study.study import Study


def best_params(storage: str, name: str | None, count: int) -> list[Mapping[str, Any]]:
    """Return the params of the best trials, the best first, in the study's own terms.

    Best is what the study's direction says; trials that break an Optuna constraint, failed or were
    pruned are passed over. Of a study with several objectives the Pareto front counts, in the
    order of the trials. A study of evomerge's gives all genes of its search trials, those too
    that are no Optuna params.

    Args:
        storage: an Optuna database URL.
        name: the study's; None where the storage has one only.

    Raises:
        InputError: no such study, or none of its trials succeeded.
    """
    found: list[Mapping[str, Any]]
    with open_own(storage, name) as own:
        found = [] if own is None else best_own_params(own, count)
    if own is None:
        with _opened(storage, name) as study:
            found, name = [trial.params for trial in _ranked(study)[:count]], study.study_name
    if not found:
        whose = f"study {name!r}" if name else "the study"
        raise InputError(f"{describe(storage)}: {whose} has no trial that succeeded")
    return found


@contextmanager
def open_own(storage: str, name: str | None) -> Iterator[Study | None]:
    """Open a study for reading that evomerge wrote; None where another program did.

    Args:
        storage: an Optuna database URL.
        name: the study's; None where the storage has one only.

    Raises:
        InputError: no such study.
    """
    with _opened(storage, name) as study:
        ours, name = "evomerge" in study.user_attrs, study.study_name
    if not ours:
        yield None
        return
    with Study.read(storage, name) as own:
        yield own


def best_own_params(study: Study, count: int) -> list[Mapping[str, Any]]:
    """Return the genes of the best search trials of one of evomerge's studies, best first; ends of
    a polish are among them.
    """
    found = [e for e in study.evaluations() if e.optimizers_own or e.role == POLISHED]
    own = [e for e in found if not e.estimated]
    return [evaluation.params for evaluation in finalists(own, count)]


@contextmanager
def _opened(storage: str, name: str | None) -> Iterator[optuna.Study]:
    rdb = open_for_reading(storage)
    try:
        with errors_explained(storage):
            there = optuna.get_all_study_names(rdb)
            chosen = there[0] if name is None and len(there) == 1 else name
            if chosen not in there:
                wanted = "say which study" if name is None else f"no study {name!r}"
                found = f"found {', '.join(map(repr, there))}" if there else "found none"
                raise InputError(f"{describe(storage)}: {wanted}; {found}")
            yield optuna.load_study(study_name=chosen, storage=rdb)
    finally:
        close(rdb)


def _ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Rank the trials that count, the best first; of equals, the earlier one first."""
    if len(study.directions) > 1:
        return sorted(study.best_trials, key=lambda trial: trial.number)
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    counting = [
        trial
        for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if trial.value is not None
        and not math.isnan(trial.value)
        and all(excess <= 0 for excess in trial.constraints.values())
    ]
    return sorted(counting, key=lambda trial: sign * (trial.value or 0.0))
