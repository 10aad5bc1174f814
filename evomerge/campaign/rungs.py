"""Rungs: which items a candidate is measured on next, and whether it is pruned.

Successive halving, asynchronous (ASHA, Li et al. 2020, arXiv:1810.05934), with a paired test of
identical items in the place of ranks: see `judging.pruning`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from typing_extensions import override

from evomerge.campaign.candidate import Candidate
from evomerge.campaign.estimates import ScoreEstimator
from evomerge.campaign.listener import Listener
from evomerge.campaign.setup import Setup
from evomerge.config import FitnessConfig
from evomerge.judging.constraints import Items
from evomerge.judging.corpus_values import with_items
from evomerge.judging.estimators import Estimates
from evomerge.judging.pruning import Incumbents, items_at
from evomerge.judging.rung_items import Rungs, fix_rungs
from evomerge.judging.scores import Judge
from evomerge.study.record import Evaluation, RungProgress, RungResult
from evomerge.study.study import Study

Ids = Mapping[str, Sequence[str]]


@dataclass(frozen=True, eq=False)
class Continue:
    """The candidate goes on to the next rung."""

    progress: RungProgress


@dataclass(frozen=True, eq=False)
class Pruned:
    """The candidate is measured no further; `estimates`: task → mean of all items, and its se."""

    progress: RungProgress
    estimates: Estimates


@dataclass(frozen=True, eq=False)
class Finished:
    """The candidate is measured on all items of the split."""

    progress: RungProgress


Decision = Continue | Pruned | Finished


class AllItems:
    """No rungs: every candidate is measured on all items of its split at once."""

    def begin(self) -> RungProgress | None:
        """Return the progress that the optimizer's candidates begin with; None without rungs."""
        return None

    def items(self, candidate: Candidate) -> Ids | None:
        """Return task → ids of the items to measure next; None for all of the split."""
        return None

    def asked(self, candidate: Candidate) -> int | None:
        """Number of items it has been asked for, those in flight included; None for all."""
        return None

    def among(self, candidate: Candidate, known: Evaluation) -> Items | None:
        """Return the scores of the items to measure next, if `known` has them all; else None."""
        return None if known.estimated else known.scores

    def decide(
        self,
        candidate: Candidate,
        items: Items,
        seconds: Mapping[str, float],
        trials: Sequence[Evaluation],
    ) -> Decision:
        """Say how a candidate goes on whose items were measured.

        Args:
            items: task → scores of the items that were asked for.
            seconds: stage → wall time it took.
            trials: the optimizer's, as recorded by now: those of the last call, and later ones.
        """
        return Finished(RungProgress(scores=items, seconds=seconds))


class SuccessiveHalving(AllItems):
    """Rungs of growing item sets for the optimizer's candidates; others are measured at once."""

    def __init__(
        self,
        rungs: Rungs,
        ids: Ids,
        judge: Judge,
        fitness: FitnessConfig,
        estimator: ScoreEstimator,
    ) -> None:
        """Begin without incumbents.

        Args:
            rungs: which items each rung holds.
            ids: task → ids of the search split's items.
            judge: of the search split.
            fitness: the campaign file's section.
            estimator: of the mean over all items, from those of a rung.
        """
        self._rungs, self._ids, self._judge = rungs, ids, judge
        self._test, self._estimator = fitness.race, estimator
        self._entered = 0  # trials that were made incumbents
        self._incumbents = [Incumbents(judge) for _ in rungs.counts]  # of each rung below the last
        self._known: list[set[str]] = [set() for _ in rungs.counts]  # digests of these
        self._places = [rungs.places(rung) for rung in range(len(rungs.counts))]

    @override
    def begin(self) -> RungProgress | None:
        return RungProgress()

    @override
    def items(self, candidate: Candidate) -> Ids | None:
        if candidate.progress is None:
            return None
        places = self._rungs.new(len(candidate.progress.results))
        return {task: [self._ids[task][i] for i in found] for task, found in places.items()}

    @override
    def asked(self, candidate: Candidate) -> int | None:
        progress = candidate.progress
        return None if progress is None else self._rungs.total(len(progress.results))

    @override
    def among(self, candidate: Candidate, known: Evaluation) -> Items | None:
        if candidate.progress is None:
            return super().among(candidate, known)
        found = items_at(known.scores, self._rungs.new(len(candidate.progress.results)))
        return found if _all_finite(found) else None

    @override
    def decide(
        self,
        candidate: Candidate,
        items: Items,
        seconds: Mapping[str, float],
        trials: Sequence[Evaluation],
    ) -> Decision:
        if candidate.progress is None:
            return super().decide(candidate, items, seconds, trials)
        # 1. Add the rung's items to those of the rungs below.
        progress = self._with_items(candidate.progress, items, seconds)
        rung = len(progress.results)
        if rung == len(self._rungs) - 1:
            return Finished(progress)
        # 2. Test it against the trials that were measured on this rung before it.
        self._enter(trials)
        ours = items_at(progress.scores, self._places[rung])
        pruned = self._incumbents[rung].prune(ours, self._test.keep, self._test.confidence)
        # 3. Estimate its score on all items, whether it goes on or not.
        estimates = self._estimator(progress.scores)
        means, errors = np.array([estimates[task] for task in self._judge.tasks]).T
        value, se = float(self._judge.value(means)), self._judge.error(means, errors)
        result = RungResult(self._rungs.total(rung), value, se)
        progress = replace(progress, results=(*progress.results, result))
        return Pruned(progress, estimates) if pruned else Continue(progress)

    def _with_items(
        self, progress: RungProgress, items: Items, seconds: Mapping[str, float]
    ) -> RungProgress:
        """Add what its rung gave to the progress, which stays on that rung."""
        scores = dict(progress.scores) or {
            t: np.full(n, np.nan) for t, n in self._rungs.sizes.items()
        }
        for task, places in self._rungs.new(len(progress.results)).items():
            scores[task] = with_items(scores[task], places, items[task])
        stages = dict.fromkeys([*progress.seconds, *seconds])
        spent = {s: progress.seconds.get(s, 0.0) + seconds.get(s, 0.0) for s in stages}
        return replace(progress, scores=scores, seconds=spent)

    def _enter(self, trials: Sequence[Evaluation]) -> None:
        """Make recorded trials incumbents of every rung whose items they were measured on."""
        for trial in trials[self._entered :]:
            scores = {} if trial.failed else trial.scores
            for places, known, incumbents in zip(
                self._places, self._known, self._incumbents, strict=True
            ):
                found = items_at(scores, places) if scores and trial.digest not in known else {}
                if found and _all_finite(found):
                    known.add(trial.digest)
                    incumbents.add({task: np.array([values]) for task, values in found.items()})
            if trial.measured:
                self._estimator.learn(trial)
        self._entered = len(trials)


def build_rungs(setup: Setup, study: Study, judge: Judge, listener: Listener) -> AllItems:
    """Build the campaign's rungs; the first call chooses their items and records them.

    Parents and baselines must have been measured on search. `listener` is told when the
    estimator is switched off.
    """
    fitness = setup.config.fitness
    if len(fitness.rungs) == 1:
        return AllItems()
    references = {
        e.digest: e.scores
        for e in study.evaluations()
        if e.role in ("parent", "baseline") and e.split == "search" and e.measured
    }
    stored = study.rungs()
    if stored is None:
        weights = dict(zip(judge.tasks, judge.weights.tolist(), strict=True))
        sizes, found = setup.sizes("search"), list(references.values())
        rungs = fix_rungs(fitness.rungs, sizes, weights, found)
        stored = rungs.with_measures(setup.measures).to_json()
        study.set_rungs(stored)
    rungs = Rungs.from_json(stored)
    below = [rungs.places(rung) for rung in range(len(rungs) - 1)]
    estimator = ScoreEstimator(fitness.estimator, below, references, listener)
    return SuccessiveHalving(rungs, setup.items["search"], judge, fitness, estimator)


def _all_finite(items: Items) -> bool:
    return all(np.isfinite(values).all() for values in items.values())
