"""The oracle routing gap: the best parent for each document, against the merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.judging import Judge
from evomerge.judging.corpus_values import is_corpus
from evomerge.judging.paired_tests import compare
from evomerge.results.audit import latest_split, mean_of
from evomerge.results.written_numbers import difference, short
from evomerge.study.record import Evaluation


def routing_gap(
    judge: Judge, evaluations: Sequence[Evaluation], digest: str
) -> dict[str, Any] | None:
    """Compare a recipe with an ideal router, which asks for each document the parent best on it.

    No router reaches that score: it is the largest of the parents' scores document by document,
    and with answers that may be guessed some of it is luck. So the gap bounds from above what
    keeping the parents apart, as dynamic Twin-Merging does, could give over the merge.

    Args:
        judge: of any split; its tasks, weights and signs are used.
        evaluations: all of the study.
        digest: of the recipe.

    Returns:
        `split`: test once it is open, else select; `items`: the documents there; `parents`: their
        names; `oracle`, `winner`: weighted means over the tasks; `difference`, `low`, `high`:
        oracle minus winner, larger is better, with its 95 % interval over documents; `tasks`: task
        → the same five; `left_out`: tasks scored as a whole corpus, of which no document has a
        score. None where the recipe or two parents were measured on neither split, or no task is
        left.
    """
    found = latest_split(evaluations, digest)
    if found is None or len(found.parents) < 2:
        return None
    mean, ours = mean_of(judge), found.ours.scores
    left_out = [task for task in mean.tasks if is_corpus(ours[task])]
    kept = [i for i, task in enumerate(mean.tasks) if task not in left_out]
    if not kept:
        return None
    mean = _only(mean, kept)
    # 1. document by document, the best of the parents' scores in the metric's direction
    oracle = {
        task: sign * np.max([sign * one.scores[task] for one in found.parents.values()], axis=0)
        for task, sign in zip(mean.tasks, mean.signs, strict=True)
    }
    # 2. paired on the documents: in sum, and task by task
    alone = {task: _only(mean, [i]) for i, task in enumerate(mean.tasks)}
    return {
        "split": found.split,
        "items": sum(len(values) for values in oracle.values()),
        "parents": list(found.parents),
        **_gap(mean, oracle, ours),
        "tasks": {task: _gap(one, oracle, ours) for task, one in alone.items()},
        "left_out": left_out,
    }


def _only(judge: Judge, places: Sequence[int]) -> Judge:
    """Return the same judge of some of its tasks."""
    tasks = [judge.tasks[i] for i in places]
    return replace(judge, tasks=tasks, weights=judge.weights[places], signs=judge.signs[places])


def _gap(
    judge: Judge, oracle: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Give both means as measured, and the paired difference where larger is better."""
    shares = dict(zip(judge.tasks, judge.weights / judge.weights.sum(), strict=True))
    oracle_mean, our_mean = (
        float(sum(share * np.mean(items[task]) for task, share in shares.items()))
        for items in (oracle, ours)
    )
    paired = compare(judge, oracle, ours)
    return {
        "oracle": oracle_mean,
        "winner": our_mean,
        "difference": paired.difference,
        "low": paired.low,
        "high": paired.high,
    }


def routing_line(found: Mapping[str, Any], leader: str = "winner") -> str:
    """Say in a sentence what an ideal router between the parents could give over the merge."""
    means = (
        f"Asking for each document the parent that is best on it, as an ideal router would, scores "
        f"{short(found['oracle'])} on {found['split']}, the {leader} {short(found['winner'])}"
    )
    gap = difference(found)
    if found["low"] > 0:
        return f"{means}: routing could give at most {gap} more."
    if found["high"] < 0:
        return f"{means} ({gap}): no choice among the parents reaches it."
    return f"{means} ({gap}): {found['items']} documents show nothing that routing could give."
