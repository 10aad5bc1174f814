"""How candidates climb the rungs of a campaign: what to measure next, and whether to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.campaign.estimates import ScoreEstimator
from evomerge.campaign.listener import Listener
from evomerge.campaign.setup import Setup
from evomerge.config import FitnessConfig
from evomerge.judging.estimators import Estimates
from evomerge.judging.pruning_test import is_stopped, on
from evomerge.judging.rungs import Rungs, fix_rungs
from evomerge.judging.scores import Judge
from evomerge.study.record import Evaluation, RungProgress, RungResult
from evomerge.study.study import Study

Ids = Mapping[str, Sequence[str]]


@dataclass
class SuccessiveHalving:
    """The rungs of one campaign.

    Attributes:
        rungs: which items each holds.
        items: task → ids of the search split's items.
        judge: of the search split.
        fitness: the campaign file's section.
        estimator: what the unmeasured items are thought to be.
    """

    rungs: Rungs
    items: Ids
    judge: Judge
    fitness: FitnessConfig
    estimator: ScoreEstimator

    def __post_init__(self) -> None:
        self._entered = 0
        self._rivals: list[dict[str, dict[str, np.ndarray]]] = [{} for _ in self.rungs.counts]

    def wanted(self, climb: RungProgress) -> dict[str, list[str]]:
        """task → ids of the items that the candidate's rung adds to those it was measured on."""
        places = self.rungs.new(len(climb.steps))
        return {task: [self.items[task][i] for i in found] for task, found in places.items()}

    def among(
        self, climb: RungProgress, items: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray] | None:
        """What `wanted` asks for, if it is among items measured elsewhere (NaN: not measured)."""
        found = on(items, self.rungs.new(len(climb.steps)))
        return found if all(np.isfinite(v).all() for v in found.values()) else None

    def asked(self, climb: RungProgress) -> int:
        """How many items it has been asked for, the rung in flight included."""
        return self.rungs.total(len(climb.steps))

    def landed(
        self, climb: RungProgress, measured: Mapping[str, np.ndarray], seconds: Mapping[str, float]
    ) -> RungProgress:
        """The climb with what its rung gave; it has taken no step yet."""
        scores = {
            task: climb.scores[task].copy() if climb.scores else np.full(size, np.nan)
            for task, size in self.rungs.sizes.items()
        }
        for task, places in self.rungs.new(len(climb.steps)).items():
            scores[task][places] = measured[task]
        stages = dict.fromkeys([*climb.seconds, *seconds])
        spent = {stage: climb.seconds.get(stage, 0.0) + seconds.get(stage, 0.0) for stage in stages}
        return replace(climb, scores=scores, seconds=spent)

    def at_top(self, climb: RungProgress) -> bool:
        """Whether it is on the last rung."""
        return len(climb.steps) == len(self.rungs) - 1

    def step(self, climb: RungProgress) -> tuple[RungProgress, Estimates]:
        """The climb with what its present rung makes of it, and the tasks' estimates."""
        estimates = self.estimator(climb.scores)
        means, errors = np.array([estimates[task] for task in self.judge.tasks]).T
        value = float(self.judge.value(means))
        taken = RungResult(self.asked(climb), value, self.judge.error(means, errors))
        return replace(climb, steps=(*climb.steps, taken)), estimates

    def stops(self, climb: RungProgress, trials: Sequence[Evaluation]) -> bool:
        """Whether it loses the race on its rung, against the recorded trials measured on it.

        `trials`: those of the last call, and later ones.
        """
        self._enter(trials)
        rung = len(climb.steps)
        incumbents = {
            task: np.array([rival[task] for rival in self._rivals[rung].values()])
            for task in self.rungs.sizes
        }
        ours, race = on(climb.scores, self.rungs.places(rung)), self.fitness.race
        return is_stopped(self.judge, ours, incumbents, race.keep, race.confidence)

    def _enter(self, trials: Sequence[Evaluation]) -> None:
        """Make recorded trials incumbents of the rungs on which they were measured."""
        for trial in trials[self._entered :]:
            for rung, rivals in enumerate(self._rivals):
                found = {} if trial.failed else on(trial.scores, self.rungs.places(rung))
                if found and all(np.isfinite(values).all() for values in found.values()):
                    rivals.setdefault(trial.digest, found)
            if trial.measured:
                self.estimator.learn(trial)
        self._entered = len(trials)


def open_ladder(
    setup: Setup, study: Study, judge: Judge, listener: Listener
) -> SuccessiveHalving | None:
    """The campaign's ladder, its rungs fixed and recorded at the first call; None without rungs.

    Parents and baselines must have been measured on search. `listener` is told when the
    estimator is switched off.
    """
    fitness = setup.config.fitness
    if len(fitness.rungs) == 1:
        return None
    yardsticks = {
        e.digest: e.scores
        for e in study.evaluations()
        if e.role in ("parent", "baseline") and e.split == "search" and e.measured
    }
    stored = study.rungs()
    if stored is None:
        weights = dict(zip(judge.tasks, judge.weights.tolist(), strict=True))
        sizes, found = setup.sizes("search"), list(yardsticks.values())
        rungs = fix_rungs(fitness.rungs, sizes, weights, found)
        stored = rungs.with_measures(setup.measures).to_json()
        study.set_rungs(stored)
    rungs = Rungs.from_json(stored)
    below = [rungs.places(rung) for rung in range(len(rungs) - 1)]
    learner = ScoreEstimator(fitness.estimator, below, yardsticks, listener)
    return SuccessiveHalving(rungs, setup.items["search"], judge, fitness, learner)
