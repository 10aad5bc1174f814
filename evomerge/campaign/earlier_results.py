"""Results of the runs and studies that `initial` names, for the surrogate that screens proposals.

They count where they would be the same here: the same recipe by its digest, which holds sources,
genes and seed, scored on the same documents of the search split in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from evomerge.campaign.listener import Listener
from evomerge.campaign.setup import Setup
from evomerge.config import BestTrials, StudyTrials
from evomerge.judging.scores import Judge
from evomerge.search.optimizers import Known
from evomerge.study.best_trials import open_own
from evomerge.study.judged import judged
from evomerge.study.record import Evaluation
from evomerge.study.run_folder import open_run
from evomerge.study.study import Study

MOST = 2000
"""Results taken over from a run at most, the latest."""


def earlier_results(setup: Setup, judge: Judge, listener: Listener) -> list[Known]:
    """Collect the results of earlier searches that are results of this one too.

    Args:
        setup: of the campaign that begins.
        judge: of its search split; earlier items are judged anew by it.
        listener: is told how many there are, or why there are none.
    """
    found: dict[str, Known] = {}
    for index, start in enumerate(setup.config.initial):
        if not isinstance(start, BestTrials | StudyTrials):
            continue
        with _opened(start) as study:
            why = "it is no study of evomerge's" if study is None else _difference(setup, study)
            own = [] if study is None or why else _same(setup, study)
        known = {
            one.digest: Known(one.trial.genome, one.scores)
            for one in judged(judge, own[-MOST:])
            if one.scores is not None and one.trial.genome is not None
        }
        found |= known
        said = f"{len(known)} of its results inform the screening from the start"
        none = why or "none of its recipes is one here, so that its results inform no screening"
        listener.said(f"initial[{index}]: {said if known else none}")
    return list(found.values())


def _opened(start: BestTrials | StudyTrials) -> AbstractContextManager[Study | None]:
    """Open another search's study for reading; None where evomerge did not write it."""
    if isinstance(start, BestTrials):
        return open_run(Path(start.run))[1]
    return open_own(start.study, start.name)


def _difference(setup: Setup, study: Study) -> str | None:
    """Say in which way scores there are not scores here; None where they are."""
    ours, theirs = setup.identity, study.identity
    parts: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "experts or base": lambda one: one["models"],
        "dtypes": lambda one: one["dtype"],
        "tasks, metrics or prompts": lambda one: _asked(one["fitness"]),
    }
    for what, part in parts.items():
        if part(ours) != part(theirs):
            return f"it had other {what}, so that its results do not inform the screening"
    if study.items().get("search") != setup.items["search"]:
        return "it searched on other documents, so that its results do not inform the screening"
    return None


def _asked(fitness: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an item's score: tasks without their weights, engine, documents and prompts."""
    tasks = {
        name: {key: value for key, value in task.items() if key != "weight"}
        for name, task in fitness["tasks"].items()
    }
    kept = ("engine", "fewshot_seed", "documents", "prompts")
    return {"tasks": tasks, **{key: fitness.get(key) for key in kept}}


def _same(setup: Setup, study: Study) -> list[Evaluation]:
    """The other search's trials whose genomes are the same recipes here, that did not fail."""
    return [
        one
        for one in study.evaluations()
        if one.optimizers_own
        and not one.failed
        and one.genome is not None
        and len(one.genome) == setup.space.dimension
        and setup.space.decode(one.genome).digest == one.digest
    ]
