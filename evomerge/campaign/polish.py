"""The polish: short gradient descents from the best finalists, whose ends stand in the choice.

An end is scored on search and select like any candidate, and wins only if it is better on select
than every finalist. Nothing of it is told to the optimizer, and test is opened after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evomerge.campaign.candidate import Candidate
from evomerge.campaign.descents import Descents, Planned
from evomerge.campaign.in_flight import InFlight
from evomerge.campaign.listener import Listener
from evomerge.campaign.recorder import Recorder
from evomerge.config import PolishConfig
from evomerge.search.descent import begin
from evomerge.study.record import POLISHED, DescentRecord, Evaluation, PolishRecord
from evomerge.workers.job import Executor

_POLISH = 0x9011_54ED_0F1A_0000
"""Keys the documents of a polish, apart from those of descents before the search."""


def polish(
    record: Recorder,
    executor: Executor,
    in_flight: InFlight,
    listener: Listener,
    origins: Sequence[Evaluation],
) -> list[Candidate]:
    """Descend from finalists, or go on with it; return where that led, to be scored on search.

    What was polished before, with the same options, is not polished again. An end is no candidate
    where no loss fell, so that it is the finalist itself.

    Args:
        record: of the campaign, whose file asks for a polish.
        executor: makes the jobs.
        in_flight: holds the log of events.
        listener: is told how they go.
        origins: the search trials to begin at, which must have genomes.
    """
    setup, study = record.setup, record.study
    wanted = setup.config.polish or PolishConfig()
    loss = setup.config.fitness.surrogate_loss.model_dump(mode="json")
    options = {**wanted.model_dump(mode="json", exclude={"top"}), "loss": loss}
    # 1. what is on record, and what begins now
    known = {one.trial: one for one in study.polished() if one.options == options}
    others = [one for one in study.polished() if one.options != options]
    for trial in origins:
        assert trial.number is not None
        assert trial.genome is not None
        fresh = begin(f"trial {trial.number}", trial.genome)
        known.setdefault(trial.number, PolishRecord(trial.number, options, fresh))
    # 2. the descents of these finalists
    by_number = {trial.number: trial for trial in origins}
    own = [one for one in known.values() if one.trial in by_number]
    rest = [*others, *(one for one in known.values() if one.trial not in by_number)]

    def keep(records: Sequence[DescentRecord]) -> None:
        now = [replace(one, descent=found) for one, found in zip(own, records, strict=True)]
        study.set_polished([*rest, *now])

    planned = [
        Planned(
            "polish",
            wanted,
            [setup.config.seed, _POLISH, by_number[one.trial].ask or 0],
            one.descent,
        )
        for one in own
    ]
    work = Descents(record, executor, in_flight, listener, planned, keep, after=True)
    work.run(None)
    # 3. their ends
    ends = []
    for one, found in zip(own, work.records, strict=True):
        origin, genome = by_number[one.trial], np.array(found.best)
        recipe = setup.space.decode(genome)
        if recipe.digest != origin.digest:
            assert origin.ask is not None
            name = f"trial {one.trial}"
            ends.append(
                Candidate(recipe, "search", POLISHED, name, genome=genome, parents=(origin.ask,))
            )
    return ends
