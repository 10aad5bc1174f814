"""Gradient descents before, in and after the search: chains of short jobs.

Where those of `initial` end the optimizer tries first; where those of proposals end is scored as
their trials; those of `polish` begin at finalists.

A job is one step's gradient, or one look at the documents held back. What came of it is in the
study before the next begins, so that a kill loses at most the jobs in flight; several descents run
side by side where there are several workers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from evomerge.campaign.candidate import Candidate
from evomerge.campaign.in_flight import ATTEMPTS, InFlight
from evomerge.campaign.initial_points import descents_of, origin_of
from evomerge.campaign.listener import Listener
from evomerge.campaign.recorder import Recorder
from evomerge.campaign.setup import Setup
from evomerge.common.errors import EvomergeError
from evomerge.config import DescentConfig, DescentOptions
from evomerge.search import frank_wolfe
from evomerge.search.descent import (
    ALL_STEPS,
    Batches,
    begin,
    is_behind,
    looked,
    mean_of_tail,
    pulled,
    scales,
    stepped,
    with_slopes,
    with_tail,
)
from evomerge.search.spaces.genes import Genome
from evomerge.search.spaces.space import Space
from evomerge.search.surrogates.loss_slopes import LossSlopes
from evomerge.study.record import Descend, DescentRecord
from evomerge.study.study import Study
from evomerge.workers.job import Executor, Job, Outcome
from evomerge.workers.worker import MIXED, Gradient

BACKWARD = 3
"""Items that a document of a step costs: a backward pass takes about two forward passes."""
INITIAL = "initial"
"""The campaign file's key of descents before the search."""
NO_ROOM = "the item budget has room for one trial more"
BEHIND = "it was behind the others on the documents held back"
IN_SEARCH = 1
"""Keys the order of the documents of proposals' descents, apart from those before the search."""
_OPTIONS = {field.name for field in fields(Descend)}


def cost_of(descent: DescentOptions, sizes: Mapping[str, int]) -> int:
    """Count the items that all steps of a descent and its looks cost; it may end before.

    Args:
        descent: as the campaign file has it.
        sizes: task → documents of the search split.
    """
    items = {task: [str(place) for place in range(size)] for task, size in sizes.items()}
    batches = Batches(items, descent.batch, descent.held_back, [0])
    looks = 1 + math.ceil(descent.steps / descent.check) if descent.check else 0
    step = BACKWARD * sum(map(len, batches.at(0).values()))
    return descent.steps * step + looks * sum(map(len, batches.held.values()))


@dataclass(frozen=True)
class Planned:
    """A descent that is to be made.

    Attributes:
        where: it stands in the campaign file.
        options: how it descends.
        seed: whole numbers that key its documents.
        record: how far it has come.
    """

    where: str
    options: DescentOptions
    seed: Sequence[int]
    record: DescentRecord


class Descents:
    """Runs descents side by side, or goes on with them.

    Those before the search count in the budget of items, and end the campaign where they cannot
    begin; those after it are counted beside, and a failure ends that descent alone.
    """

    def __init__(
        self,
        record: Recorder,
        executor: Executor,
        in_flight: InFlight,
        listener: Listener,
        planned: Sequence[Planned],
        keep: Callable[[Sequence[DescentRecord]], None],
        *,
        after: bool = False,
    ) -> None:
        """Take over how far they have come.

        Args:
            record: of the campaign.
            executor: makes the jobs.
            in_flight: holds the log of events.
            listener: is told how they go.
            planned: the descents.
            keep: writes their records to the study, in this order.
            after: they come after the search.
        """
        self._record, self._executor, self._listener = record, executor, listener
        self._setup, self._log = record.setup, in_flight.log
        self._planned, self._keep, self._after = planned, keep, after
        self._chains = [Chain(self._setup, _asked_by(one.options), one.seed) for one in planned]
        self._records = [one.record for one in planned]
        self._running: set[int] = set()

    @property
    def records(self) -> list[DescentRecord]:
        """How far they have come."""
        return list(self._records)

    def run(self, deadline: float | None) -> bool:
        """Descend until all are done; False if `deadline` (time.monotonic) came first.

        Raises:
            EvomergeError: the first job of a descent of the campaign file's `initial` fails; names
                its entry. One that is there by default ends.
        """
        self._count_session()
        for one, planned in zip(self._records, self._planned, strict=True):
            if one.done is None:
                self._listener.said(
                    f"gradient descent from {one.origin}: step {one.step} of "
                    f"{planned.options.steps}"
                )
        try:
            while any(one.done is None for one in self._records):
                self._submit(deadline)
                if not self._running:
                    return False
                outcome = self._executor.wait()
                self._log.write(self._executor.drain_events(), self._executor.workers)
                if outcome is not None:
                    self._running.discard(outcome.job.ticket)
                    self._take(outcome)
        except (KeyboardInterrupt, EvomergeError):
            self._records = [replace(r, attempts=max(0, r.attempts - 1)) for r in self._records]
            self._save()
            raise
        return True

    def _count_session(self) -> None:
        """Count this session as an attempt, where a job can take the driver down with it."""
        if not self._executor.isolated:
            self._records = [
                one if one.done else replace(one, attempts=one.attempts + 1)
                for one in self._records
            ]
        for index, one in enumerate(self._records):
            if one.attempts > ATTEMPTS:
                self._end(index, f"it took the driver down {ATTEMPTS} times")
        self._save()

    def _submit(self, deadline: float | None) -> None:
        """Begin the next job of every descent that has none, as workers, time and budget allow."""
        for index, record in enumerate(self._records):
            if record.done is not None or index in self._running or not self._executor.free:
                continue
            if deadline is not None and time.monotonic() >= deadline:
                continue
            job = self._chains[index].next_job(record)
            if not self._after and self._overspends(job):
                self._end(index, NO_ROOM)
                continue
            self._running.add(index)
            self._executor.submit(replace(job, ticket=index, last=record.attempts >= ATTEMPTS))

    def _overspends(self, job: Job) -> bool:
        """Say whether a job leaves no items for a trial."""
        budget, first = self._setup.config.budget.items, self._setup.first_rung
        return budget is not None and self._record.spent + job.count_items({}) + first > budget

    def _take(self, outcome: Outcome) -> None:
        """Go on with a descent by what came of its job."""
        index = outcome.job.ticket
        record = self._records[index]
        if outcome.machine_fault:  # no attempt of the descent
            return
        if outcome.retryable and record.attempts < ATTEMPTS:
            self._records[index] = replace(record, attempts=record.attempts + 1)
            self._save()
            return
        found = outcome.gradient
        if found is None:
            asked = not (self._after or INITIAL in self._setup.by_default)
            if asked and not (record.step or record.checks):
                raise EvomergeError(
                    f"{self._planned[index].where}: {outcome.reason}; begin elsewhere (from:), or "
                    "leave it out"
                )
            self._end(index, str(outcome.reason))
            return
        self._record.spent += 0 if self._after else outcome.job.count_items({})
        self._log.record_engine_facts(found.facts)
        self._records[index] = self._chains[index].after(record, outcome.job, found)
        self._save()  # before anything follows from it
        if self._records[index].done:
            self._say(index)

    def _end(self, index: int, why: str) -> None:
        self._records[index] = replace(self._records[index], done=why)
        self._save()
        self._say(index)

    def _say(self, index: int) -> None:
        record, options = self._records[index], self._planned[index].options
        sets = isinstance(options, DescentConfig) and options.sets
        self._listener.said(_ended_line(record))
        if sets:
            order = ", ".join(f"{name} {gain:.3g}" for name, gain in record.gains.items())
            self._listener.said(f"experts by what raising them promised at first: {order}")

    def _save(self) -> None:
        self._keep(self._records)


class Chain:
    """The jobs of one descent, in turn, and what follows from each.

    Attributes:
        asked: what it is to be.
    """

    def __init__(
        self, setup: Setup, asked: Descend, seed: Sequence[int], order: Sequence[int] | None = None
    ) -> None:
        """Set the documents of its steps apart; `seed` and `order` as for `Batches`."""
        self.asked, self._space = asked, setup.space
        # 1. tasks count by their weights, beside one that may have a share of its own
        counted = {task.task: task.weight for task in setup.tasks if task.weight > 0}
        if asked.task in counted:
            others = sum(weight for task, weight in counted.items() if task != asked.task)
            factor = (1 - asked.share) / others if others else 0.0
            shares = {task: weight * factor for task, weight in counted.items()}
            counted = {**shares, asked.task: asked.share if others else 1.0}
        total = sum(counted.values())
        self._weights = {task: weight / total for task, weight in counted.items() if weight > 0}
        # 2. documents of these tasks alone
        items = {task: setup.items["search"][task] for task in self._weights}
        self._batches = Batches(items, asked.batch, asked.held_back, seed, order)

    def next_job(self, record: DescentRecord) -> Job:
        """Make the job that comes next: a look, where one is due, or a step."""
        recipe = self._space.decode(np.array(record.genome))
        if self.asked.looks(record.step) and not record.checked:
            return Job(0, recipe, "search", self._batches.held, task="losses")
        batch, weights = self._batches.at(record.step), self._weights
        return Job(0, recipe, "search", batch, task="gradient", task_weights=weights)

    def after(self, record: DescentRecord, job: Job, found: Gradient) -> DescentRecord:
        """Take in what a job found: a look at the documents held back, or a step."""
        asked = self.asked
        # 1. what it cost, and the tasks' mean losses, weighted
        items = record.items + job.count_items({})
        seconds = record.seconds + sum(found.seconds.values())
        record = replace(record, items=items, seconds=seconds, attempts=0)
        loss = float(sum(w * found.losses[task].mean() for task, w in self._weights.items()))
        if job.task == "losses":
            record = replace(record, held=job.count_items({}))
            return looked(record, loss, asked.steps, asked.patience)
        # 2. a step; without looks the best point is the last that had a gradient, until the end
        genome = np.array(record.genome)
        record = replace(record, losses=[*record.losses, loss])
        if record.step == 0:
            record = replace(record, gains=frank_wolfe.gains(found.derivatives[MIXED]))
        gradient = self._space.pull_back(genome, found.derivatives[MIXED])
        if not np.isfinite(gradient).all():
            return replace(record, done="the gradient was not finite")
        if record.asked is None:
            record = with_slopes(record, gradient)
        moved = self._stepped(record, gradient)
        if asked.check:
            return moved
        if moved.step < asked.steps:
            moved = with_tail(moved, asked)
            return replace(moved, best=record.genome, best_step=record.step)
        end = mean_of_tail(with_tail(moved, asked), asked)
        return replace(moved, best=end, best_step=moved.step, tail=[], done=ALL_STEPS)

    def _stepped(self, record: DescentRecord, gradient: NDArray[np.float64]) -> DescentRecord:
        """Make a step by the rule that was asked for."""
        asked, vertices = self.asked, self._space.vertices()
        if asked.rule == "adam" or vertices is None:
            return stepped(record, pulled(record, gradient, asked), asked.rate)
        genome = np.array(record.genome)
        moved = frank_wolfe.stepped(genome, gradient, vertices, record.step, asked.rate)
        return replace(record, step=record.step + 1, genome=moved.tolist())


def _ended_line(record: DescentRecord) -> str:
    """Say how a descent went that has ended."""
    losses = [loss for _, loss in record.checks]
    task = record.asked.task if record.asked else None
    raised = f" for {task} above all" if task else ""
    fell = f": loss held back {losses[0]:.4g} → {min(losses):.4g}" if losses else ""
    return (
        f"gradient descent from {record.origin}{raised}{fell} at step {record.best_step} of "
        f"{record.step} ({record.items:,} items); {record.done}"
    )


class ProposedDescents:
    """Brings the candidates whose proposals ask for a descent to its end."""

    def __init__(self, record: Recorder, in_flight: InFlight, listener: Listener) -> None:
        """Begin with what the study knows of those in flight; `listener` is told of long ones."""
        self._record, self._in_flight, self._listener = record, in_flight, listener

    def begin(self, candidate: Candidate) -> Candidate:
        """Put a candidate where its descent has come to, which may be in flight from before."""
        proposal = candidate.proposal
        if proposal is None or proposal.descent is None:
            return candidate
        asked = proposal.descent
        return self._at(candidate, candidate.descent or begin(asked.origin, proposal.genome, asked))

    def start_job(self, candidate: Candidate) -> Candidate | None:
        """Begin the next job of a candidate that descends.

        Returns:
            The candidate at the descent's end, where the item budget has no room for the job.
        """
        record = candidate.descent
        assert record is not None
        job = self._chain(candidate).next_job(record)
        setup = self._record.setup
        budget = setup.config.budget.items
        # what is recorded or in flight, this job, and the first rung of its end
        own = record.items + job.count_items({}) + setup.first_rung
        wanted = self._record.spent + self.begun_items + own
        if budget is not None and wanted > budget:
            return self._at(candidate, replace(record, done=NO_ROOM))
        self._in_flight.submit(candidate, job)
        return None

    @property
    def begun_items(self) -> int:
        """What candidates in flight are asked for by now: by descents, and on a first rung."""
        descents = sum(one.descent.items for one in self._in_flight.begun() if one.descent)
        return descents + len(self._in_flight) * self._record.setup.first_rung

    def take(self, candidate: Candidate, outcome: Outcome) -> None:
        """Go on with a candidate by what came of a job of its descent, and write it down."""
        record, found = candidate.descent, outcome.gradient
        assert record is not None
        if found is None:  # the best point by now is scored; it says what is wrong, if it is
            record = replace(record, done=str(outcome.reason))
        else:
            record = self._chain(candidate).after(record, outcome.job, found)
            others = [one.descent for one in self._record.trials if one.descent]
            if record.done is None and is_behind(record, others):
                record = replace(record, done=BEHIND)
        if record.done and record.asked and record.asked.check:
            self._listener.said(_ended_line(record))
        self._in_flight.keep(self._at(replace(candidate, attempt=1), record))

    def _chain(self, candidate: Candidate) -> Chain:
        record, proposal = candidate.descent, candidate.proposal
        assert record is not None
        assert record.asked is not None
        assert proposal is not None
        seed = self._record.setup.config.seed
        return Chain(self._record.setup, record.asked, [seed], [seed, IN_SEARCH, proposal.ask])

    def _at(self, candidate: Candidate, record: DescentRecord) -> Candidate:
        """Put a candidate where its descent is; at its end, that is what the optimizer is told."""
        genome = np.array(record.best if record.done else record.genome)
        proposal = candidate.proposal
        if proposal is not None and record.done:
            proposal = replace(proposal, genome=genome)
        recipe = self._record.setup.space.decode(genome)
        return replace(candidate, recipe=recipe, proposal=proposal, descent=record)


def descend_before_search(
    record: Recorder,
    executor: Executor,
    in_flight: InFlight,
    listener: Listener,
    deadline: float | None,
) -> None:
    """Run the descents of `initial`; the optimizer tries first where they ended.

    `deadline`: in the seconds of time.monotonic; what is not done then goes on in the next session.
    """
    if record.trials or not descents_of(record.setup.config.initial):
        return
    planned, keep = _before_search(record), record.study.set_descents
    if Descents(record, executor, in_flight, listener, planned, keep).run(deadline):
        _note_gradients(record)
        record.setup = with_ends(record.setup, record.study)


def _before_search(record: Recorder) -> list[Planned]:
    """Plan the descents of `initial`; parents must have been measured on search."""
    setup, known = record.setup, record.study.descents()
    configs = descents_of(setup.config.initial)
    if not known:
        scored = record.known_by_score()
        starts = [origin_of(one, setup.space, where, scored) for where, one in configs.items()]
        known = [begin(name, genome) for name, genome in starts]
    return [
        Planned(where, options, [setup.config.seed, index], known[index])
        for index, (where, options) in enumerate(configs.items())
    ]


def with_ends(setup: Setup, study: Study) -> Setup:
    """The set-up whose optimizer tries first where the study's descents ended, once all did."""
    records = study.descents()
    if not records or any(one.done is None for one in records):
        return setup
    ends = [np.array(one.best) for one in records]
    options = descents_of(setup.config.initial).values()
    sets = [
        genome
        for one, wanted in zip(records, options, strict=True)
        for genome in _sets(setup.space, one, wanted.sets)
    ]
    seen = study.slopes()
    loss = LossSlopes.fit(round(seen[0][0]), seen[1:]) if seen else None
    return setup.with_starts([*ends, *sets], study.scales(), loss)


def _sets(space: Space, record: DescentRecord, count: int) -> list[Genome]:
    """The end of a descent with sets of the experts alone that gained the most, the largest first.

    Experts that the end leaves out stay out.
    """
    place = {gene.name: index for index, gene in enumerate(space.genes)}
    there = space.params(np.array(record.best))
    experts = [name for name in record.gains if there.get(f"use.{name}")]
    found = []
    for size in reversed(frank_wolfe.sizes(len(experts), count)):
        genome = np.array(record.best)
        for name in experts[size:]:
            index = place[f"use.{name}"]
            genome[index] = space.genes[index].unit(False)
        found.append(genome)
    return found


def _note_gradients(record: Recorder) -> None:
    """Note what the optimizer learns of the descents' gradients, unless all is to be plain.

    How far genes may vary at first around their ends, and, where proposals are screened, the sums
    of slopes. Studies without the notes were begun with nothing, and go on so.
    """
    wanted, study = record.setup.config.optimizer, record.study
    if wanted.plain or study.scales():
        return
    descents = study.descents()
    told = [one.slopes for one in descents if one.slopes]
    seen = [np.array(rows) for rows in zip(*told, strict=True)]
    if wanted.screen > 1 and seen:
        study.set_slopes([rows.sum(axis=0).tolist() for rows in seen])
    found = map(scales, descents)
    study.set_scales([None if one is None else one.tolist() for one in found])


def _asked_by(options: DescentOptions) -> Descend:
    """What a section of the campaign file asks for."""
    given = options.model_dump(by_alias=False)
    return Descend(**{"origin": "", **{key: given[key] for key in given if key in _OPTIONS}})
