"""Defaults of a search that a plain campaign file means, where each pays.

A gradient start and, with `cma`, short descents from the best so far; rungs where there is no such
start; screening.

What the campaign file says of them is never changed, `optimizer.plain: true` leaves them off, and a
study keeps those that it was begun with. What they save is measured in docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from evomerge.campaign.descents import BACKWARD, INITIAL, cost_of
from evomerge.campaign.initial_points import check_descents
from evomerge.campaign.setup import Setup
from evomerge.common.errors import InputError
from evomerge.config import (
    CampaignConfig,
    DescentConfig,
    GradientStart,
    SurrogateLossConfig,
)
from evomerge.fitness.tasks.corpus_metrics import OWN
from evomerge.judging.rung_items import check_rungs
from evomerge.search.descent import AVERAGE, small_batch_for
from evomerge.study.run_folder import open_study_of
from evomerge.study.study import BY_DEFAULT

LOSS, RUNGS, SCREEN = "fitness.surrogate_loss", "fitness.rungs", "optimizer.screen"
DESCENTS, NEAR = "optimizer.descents", "optimizer.near"
PATIENCE = "optimizer.patience"
ASKED, LEAST, MOST = 2.7, 216, 1296
"""Items that the gradient start costs for each search item, and its fewest and most."""
RATE, SINGLE = 0.035, 0.05
"""Of its steps, and of those of one document alone, which lead less far for their noise."""
POWER = 0.7
"""Bounds the loss of the gradient start: at 0 its end lost accuracy where an expert is surely wrong
(docs/benchmarks.md)."""
SHARE = 0.15
"""Most of the budget's items that the gradient start may cost."""
OFTEN = 12
"""Most short descents of `cma` from the best so far, after a gradient start; trials for each."""
STEP = 0.05
"""Step of `cma` around a descent's end: one of .1 left it in most proposals (docs/benchmarks.md).
"""
STILL = 5
"""Populations without a better trial after which `cma` around a descent's end begins as where
nothing is known: by then steps of .05 found little more (docs/benchmarks.md).
"""
OPTIMIZER = "cma"
"""The optimizer with which rungs and screening were measured."""
FEWEST_ITEMS = 200
"""Search items from which on there are rungs."""
FEWEST_TRIALS = 50
"""Trials from which on proposals are screened."""
AMONG = 4
"""Proposals of which one is evaluated."""


@dataclass(frozen=True)
class Choice:
    """A default that is on, or the reason for which it is not.

    Attributes:
        key: of the campaign file.
        value: what the campaign file would say; None where it is not on.
        said: the value, or the reason, in words; empty where another choice says it.
    """

    key: str
    value: Any
    said: str


def with_defaults(setup: Setup, folder: Path) -> Setup:
    """Return the set-up with what its campaign file leaves open: `folder` is the run's."""
    config = setup.config
    keys = (INITIAL, DESCENTS, NEAR, PATIENCE, RUNGS, SCREEN)
    left = [key for key in keys if not _is_given(config, key)]
    if INITIAL in left and not _is_given(config, LOSS):
        left.append(LOSS)
    if config.optimizer.plain or not left:
        return setup
    begun = _begun_with(config, folder)
    found = _choices(setup) if begun is None else begun
    choices = [one for one in found if one.key in left]
    chosen = {one.key: one.value for one in choices if one.value is not None}
    said = "; ".join(one.said for one in choices if one.said)
    if chosen:
        off = ", ".join(f"{key}: {_OFF[key]}" for key in chosen if key in _OFF)
        said += f"; off with {off}, or all with optimizer.plain: true"
    elif begun is not None:
        said = ""
    shown = TypeAdapter(dict[str, Any]).dump_python(chosen, mode="json")
    return replace(setup.with_search(_with(config, chosen)), by_default=shown, said=said)


_OFF = {INITIAL: "[]", DESCENTS: "0", RUNGS: "[all]", SCREEN: "1"}


def _is_given(config: CampaignConfig, key: str) -> bool:
    """Tell whether the campaign file says it by hand."""
    *sections, last = key.split(".")
    section: Any = config
    for name in sections:
        section = getattr(section, name)
    return last in section.model_fields_set or last in (section.model_extra or {})


def _with(config: CampaignConfig, chosen: Mapping[str, Any]) -> CampaignConfig:
    """Return the campaign as if its file said what was chosen."""
    update: dict[str, Any] = {}
    for key, value in chosen.items():
        section, _, last = key.rpartition(".")
        if section:
            before = update.get(section, getattr(config, section))
            update[section] = before.model_copy(update={last: value})
        else:
            update[last] = value
    return config.model_copy(update=update)


def _begun_with(config: CampaignConfig, folder: Path) -> list[Choice] | None:
    """What a study that there is was begun with by default; None where there is no study."""
    try:
        with open_study_of(config, folder) as study:
            found = study.note(BY_DEFAULT) or {}
    except InputError:
        return None
    if starts := found.get(INITIAL):
        found = {**found, INITIAL: [GradientStart.model_validate(start) for start in starts]}
    if loss := found.get(LOSS):
        found = {**found, LOSS: SurrogateLossConfig.model_validate(loss)}
    return [Choice(key, value, f"{key} as the study was begun") for key, value in found.items()]


def _choices(setup: Setup) -> Iterator[Choice]:
    start = _gradient_start(setup)
    yield start
    begins = start.value is not None and not _is_given(setup.config, INITIAL)
    if begins:
        yield Choice(LOSS, SurrogateLossConfig(power=POWER), "")
    if begins and setup.config.optimizer.kind == OPTIMIZER:
        yield Choice(NEAR, STEP, "")
        yield Choice(PATIENCE, STILL, "")
        often = min(OFTEN, setup.most_trials // OFTEN)
        yield Choice(DESCENTS, often, f"{often} short descents from the best so far")
    else:
        yield _rungs(setup)
    yield _screening(setup)


def descent_for(items: int) -> DescentConfig:
    """Return the gradient start where so many items are searched on.

    Nothing is held back: so few documents would choose its end by luck; the search does that.
    """
    batch = small_batch_for(items)
    return DescentConfig.model_validate(
        {
            "steps": round(min(MOST, max(LEAST, ASKED * items)) / (BACKWARD * batch)),
            "batch": batch,
            "rate": RATE if batch > 1 else SINGLE,
            "held_back": 0,
            "check": 0,
            "average": AVERAGE,
            "from": "best_known",
        }
    )


def _gradient_start(setup: Setup) -> Choice:
    sizes = setup.sizes("search")
    descent = descent_for(sum(sizes.values()))
    starts = [GradientStart(gradient=descent)]
    config = setup.config.model_copy(update={"initial": starts})
    if config.optimizer.kind != OPTIMIZER and setup.optimizer.descends(1) is not None:
        return Choice(INITIAL, None, f"no gradient start: {config.optimizer.kind} descends itself")
    # 1. is there a gradient?
    try:
        check_descents(config, setup.space, setup.kinds, setup.unanswered, None)
    except InputError as error:
        reason = str(error).partition(": ")[2]
        return Choice(INITIAL, None, f"no gradient start: {reason}")
    # 2. does it fit into the budget?
    items, whole = cost_of(descent, sizes), _budget(setup)
    if items > SHARE * whole:
        return Choice(
            INITIAL,
            None,
            f"no gradient start: {items:,} items are over {SHARE:.0%} of the budget's {whole:,}",
        )
    return Choice(
        INITIAL,
        starts,
        f"gradient start from the best that is known: {descent.steps} steps of a bounded loss, "
        f"{items:,} items ({items / whole:.1%} of the budget's)",
    )


def _rungs(setup: Setup) -> Choice:
    sizes = setup.sizes("search")
    items = sum(sizes.values())
    own = [task.task for task in setup.tasks if task.aggregate == OWN]
    if setup.config.optimizer.kind != OPTIMIZER or items < FEWEST_ITEMS or own:
        why = f"no rungs (they are for {OPTIMIZER}, {FEWEST_ITEMS} search items and more)"
        return Choice(RUNGS, None, why)
    rungs: list[int | str] = [items // 12, items // 4, "all"]
    try:
        check_rungs(rungs, sizes)
    except InputError:
        return Choice(RUNGS, None, f"no rungs ({len(sizes)} tasks share {items} search items)")
    return Choice(RUNGS, rungs, f"rungs {', '.join(map(str, rungs))}")


def _screening(setup: Setup) -> Choice:
    if setup.config.optimizer.kind != OPTIMIZER or setup.most_trials < FEWEST_TRIALS:
        why = f"no screening (it is for {OPTIMIZER}, {FEWEST_TRIALS} trials and more)"
        return Choice(SCREEN, None, why)
    return Choice(SCREEN, AMONG, f"screen {AMONG}")


def _budget(setup: Setup) -> int:
    """Search items of the whole budget."""
    budget = setup.config.budget
    return budget.items or budget.trials * sum(setup.sizes("search").values())
