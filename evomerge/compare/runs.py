"""The runs of a comparison: one ordinary run for each optimizer and seed, in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evomerge.campaign.listener import Listener
from evomerge.campaign.loop import Campaign
from evomerge.campaign.open import open_study, start_workers
from evomerge.campaign.setup import Setup
from evomerge.common.errors import InputError
from evomerge.compare.arms import OPTION, Arm
from evomerge.compare.curves import Curve, curve, summarize
from evomerge.config import CampaignConfig, parse_campaign
from evomerge.study.judged import known_of
from evomerge.study.record import Evaluation

Known = dict[tuple[str, str], Evaluation]
"""(digest, split) → its best known evaluation; see `known_of`."""


class RunsListener(Listener, Protocol):
    """A listener to several runs, one after the other."""

    def begin(self, title: str) -> None:
        """Learn that another run begins."""


def compare_optimizers(
    setup: Setup, arms: Sequence[Arm], seeds: int, folder: Path, listener: RunsListener
) -> dict[str, Any]:
    """Run whatever is missing of every (optimizer, seed), and sum up.

    Each is a run of its own in `folder/<optimizer>/seed-<seed>`, and goes on where it stopped. All
    seeds of a campaign begin at its own. Optimizers take turns, so that a comparison which is
    stopped has compared something. A recipe is measured once, whichever runs ask for it.

    Raises:
        InputError: an optimizer's name or options are wrong (before any work), or a folder holds
            another campaign's run.
        EvomergeError: the base model itself cannot be scored.
    """
    first = setup.config.seed
    folders = {arm.label: folder / arm.folder for arm in arms}
    setups = {
        (arm.label, seed): _setup(setup, arm, seed, folders[arm.label] / f"seed-{seed}")
        for seed in range(first, first + seeds)
        for arm in arms
    }
    known: Known = {}
    runs: dict[str, dict[int, Curve]] = {arm.label: {} for arm in arms}
    references: list[Evaluation] = []
    budget, items = setup.config.budget, sum(setup.sizes("search").values())
    with closing(start_workers(setup, folder, listener)) as executor:
        for place, ((label, seed), own) in enumerate(setups.items(), 1):
            listener.begin(f"{label}, seed {seed} (run {place} of {len(setups)})")
            with open_study(own, folders[label] / f"seed-{seed}", listener) as study:
                Campaign(own, study, executor, listener, known).race()
                found, before = study.evaluations(), sum(d.items for d in study.descents())
            known |= known_of([*known.values(), *(e for e in found if not e.failed)])
            references += [e for e in found if e.split == "select" and e.name and not e.failed]
            runs[label][seed] = curve(setup.judge, found, budget, items, before)
    return {
        "campaign": setup.config.name,
        "objective": objective_label(setup),
        "trials": budget.trials,
        "items": budget.items,
        "search_items": items,
        "select_items": sum(setup.sizes("select").values()),
        "seeds": list(range(first, first + seeds)),
        "folders": {label: str(path) for label, path in folders.items()},
        **summarize(runs, _levels(references)),
    }


def objective_label(setup: Setup) -> str:
    """Name the scores in an axis title: `mean acc over 3 tasks`."""
    counted = [task for task in setup.tasks if task.weight > 0]
    metrics = {task.metric for task in counted}
    metric = f" {metrics.pop()}" if len(metrics) == 1 else ""
    count = "1 task" if len(counted) == 1 else f"{len(counted)} tasks"
    return f"{setup.judge.objective.name}{metric} over {count}"


def _setup(setup: Setup, arm: Arm, seed: int, folder: Path) -> Setup:
    try:
        own = setup.with_config(_config(setup.config, arm, seed), folder)
    except InputError as error:
        raise InputError(f"{OPTION} {arm.label}: {error}") from None
    loss, theirs = own.config.fitness.surrogate_loss.kind, setup.config.fitness.surrogate_loss.kind
    if loss != theirs:
        raise InputError(
            f"{OPTION} {arm.label}: its gradients follow {loss}, but all arms share the campaign's "
            f"workers; write fitness.surrogate_loss: {{kind: {loss}}} for all of them"
        )
    return own


def _config(config: CampaignConfig, arm: Arm, seed: int) -> CampaignConfig:
    """The campaign of one run; its study has a name of its own, for one storage may hold all."""
    name = f"{config.study.name or config.name}-{arm.folder}-{seed}"
    study = config.study.model_copy(update={"name": name})
    update: dict[str, Any] = {"optimizer": arm.optimizer, "seed": seed, "study": study}
    if arm.fitness:
        data = config.model_dump(mode="json")
        changed = {**data, "fitness": {**data["fitness"], **arm.fitness}}
        update["fitness"] = parse_campaign(changed, OPTION).fitness
    return config.model_copy(update=update)


def _levels(found: Sequence[Evaluation]) -> Mapping[str, Mapping[str, float]]:
    """Role → name → score; the median over seeds, since random merges differ by seed."""
    return {
        role: {
            name: float(np.median([e.value for e in found if (e.role, e.name) == (role, name)]))
            for name in _names(found, role)
        }
        for role in ("parent", "baseline")
    }


def _names(found: Sequence[Evaluation], role: str) -> Iterator[str]:
    return iter(dict.fromkeys(e.name for e in found if e.role == role and e.name))
