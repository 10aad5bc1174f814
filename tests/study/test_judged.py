"""Trials stand as they were recorded, without a look at their items."""

from __future__ import annotations

import numpy as np
from drivers import open_study, scored
from judges import judge

from evomerge.judging.selection import best, finalists
from evomerge.study.judged import as_recorded, judged
from evomerge.study.study import Study


def test_recorded_scores_rank_trials_as_judging_their_items_does(url):
    measure, rng = judge(), np.random.default_rng(0)
    with open_study(url) as study:
        for place in range(12):
            items = {task: (rng.random(8) < 0.5).astype(float) for task in measure.tasks}
            found = measure.scores(items)
            failed = {"reason": "out of memory", "scores": {}}
            facts = {"scores": items, "se": found.se, "n": found.n, "violation": place % 4 * 0.1}
            value, facts = (None, failed) if place == 5 else (found.value, facts)
            study.add(scored(value, str(place), **facts))
    with Study.read(url, "c") as study:
        trials = study.evaluations()
    recorded, again = as_recorded(measure, trials), judged(measure, trials)
    for one, other in zip(recorded, again, strict=True):
        if other.scores is None:
            assert (one.scores, one.value) == (None, None)
            continue
        assert (one.scores.value, one.scores.se, one.scores.n) == (
            other.scores.value,
            other.scores.se,
            other.scores.n,
        )
    assert [e.violation for e in trials[:4]] == [0.0, 0.1, 0.2, 0.30000000000000004]
    feasible = [one for one in again if one.trial.violation == 0]
    assert best(recorded).trial is best(feasible).trial
    ranked = [one.trial.violation for one in finalists(recorded, 12)]
    assert ranked == sorted(ranked), "what breaks constraints comes last, by how much it does"
