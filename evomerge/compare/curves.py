"""Best so far against item evaluations: one curve a run, and the summary of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.config import BudgetConfig
from evomerge.judging import Judge, leading
from evomerge.study.judged import searched
from evomerge.study.record import Evaluation

SHARE = 0.95
"""The target that optimizers are timed to, as a share of the best known score."""
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, eq=False)
class Curve:
    """One run of an optimizer: the select score of its best by search, after each trial.

    Attributes:
        spent: item evaluations that the optimizer had asked for, shape (trials,), rising.
        select: shape (trials,); NaN as long as every trial failed.
    """

    spent: NDArray[np.float64]
    select: NDArray[np.float64]

    def at(self, spent: NDArray[np.float64]) -> NDArray[np.float64]:
        """Evaluate the curve as a step function; NaN before the first trial."""
        place = np.searchsorted(self.spent, spent, side="right") - 1
        return np.where(place < 0, np.nan, self.select[np.maximum(place, 0)])

    def reached(self, target: float) -> float:
        """Count the item evaluations until `target` was first reached; ∞ when it never was."""
        there = np.flatnonzero(self.select >= target)
        return float(self.spent[there[0]]) if len(there) else np.inf


def curve(
    judge: Judge,
    evaluations: Sequence[Evaluation],
    budget: BudgetConfig,
    items: int,
    before: int = 0,
) -> Curve:
    """Draw the curve of a run's trials within the budget; the last may begin in it and end beyond.

    A trial costs the items it was asked for, whether they were scored, looked up or lost in a
    failure (which costs `items`, the whole search split): measurements of other runs make no run
    faster. Gradient descents had cost the run `before` items when its first trial began. Where the
    best by search could not be scored on select, the one before it stays.
    """
    # 1. the trials within the budget of trials, or of items
    own = searched(judge, evaluations)[: budget.trials]
    spent = before + np.cumsum([one.trial.cost(items) for one in own], dtype=np.float64)
    if budget.items is not None:
        own = own[: 1 + int(np.searchsorted(spent, budget.items))]
    # 2. after each trial the select score of the best by search
    select = {e.digest: e.value for e in evaluations if e.split == "select" and not e.failed}
    values: list[float] = []
    for leader in leading(own):
        value = select.get(leader.digest) if leader else None
        last = values[-1] if values else np.nan
        values.append(last if value is None else float(value))
    return Curve(spent[: len(own)], np.array(values))


def quartiles(curves: Sequence[Curve]) -> dict[str, list[float]]:
    """Give lower quartile, median and upper quartile over runs, wherever every run has a score.

    Returns:
        `spent`, `low`, `median`, `high`: lists of one length; of equal neighbours the first only,
        and the last point.
    """
    # 1. every run as a step function over all steps of any
    spent = np.unique(np.concatenate([c.spent for c in curves]))
    values = np.stack([c.at(spent) for c in curves])
    known = np.isfinite(values).all(axis=0)
    if not known.any():
        return {"spent": [], "low": [], "median": [], "high": []}
    # 2. quartiles, kept where one of them changes
    spent, bands = spent[known], np.quantile(values[:, known], QUARTILES, axis=0)
    changes = np.append(True, (np.diff(bands, axis=1) != 0).any(axis=0))
    changes[-1] = True
    low, median, high = bands[:, changes].tolist()
    return {"spent": spent[changes].tolist(), "low": low, "median": median, "high": high}


def summarize(
    runs: Mapping[str, Mapping[int, Curve]], references: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Sum the comparison up in plain data.

    Args:
        runs: optimizer → seed → its curve.
        references: "parent" | "baseline" → name → score on select.

    Returns:
        `best_known`: the highest score on select, references and all; `target`: `SHARE` of it;
        `first`: the median final score of the optimizer named first; `yardsticks`;
        `optimizers`: label → `final` (quartiles and `runs`), `to_target` (`median` item
        evaluations, null unless more than half of the runs arrived; `reached`, `of`), `to_first`
        (likewise to `first`), `wins` (a seed's best final score; ties are shared), `curve`
        (`quartiles`).
    """
    final = {
        label: {seed: float(c.select[-1]) for seed, c in found.items()}
        for label, found in runs.items()
    }
    scores = [
        *(score for found in references.values() for score in found.values()),
        *(float(v) for found in runs.values() for c in found.values() for v in c.select),
    ]
    best = max((score for score in scores if np.isfinite(score)), default=np.nan)
    target = best - (1 - SHARE) * abs(best)
    wins, ends = _wins(final), {label: _final(scores) for label, scores in final.items()}
    first = next(iter(ends.values()))["median"] if ends else None
    return {
        "best_known": _number(best),
        "target": _number(target),
        "first": first,
        "yardsticks": {role: dict(found) for role, found in references.items()},
        "optimizers": {
            label: {
                "final": ends[label],
                "to_target": _to_target(list(found.values()), target),
                "to_first": _to_target(list(found.values()), np.nan if first is None else first),
                "wins": wins[label],
                "curve": quartiles(list(found.values())),
            }
            for label, found in runs.items()
        },
    }


def _final(scores: Mapping[int, float]) -> dict[str, Any]:
    known = [score for score in scores.values() if np.isfinite(score)]
    low, median, high = np.quantile(known, QUARTILES).tolist() if known else [None] * 3
    runs = {str(seed): _number(score) for seed, score in scores.items()}
    return {"low": low, "median": median, "high": high, "runs": runs}


def _to_target(curves: Sequence[Curve], target: float) -> dict[str, Any]:
    spent = np.array([c.reached(target) for c in curves])
    # the upper of two middle runs: between an arrival and none there is no mean
    median = float(np.quantile(spent, 0.5, method="higher"))
    reached = int(np.isfinite(spent).sum())
    return {"median": _number(median), "reached": reached, "of": len(curves)}


def _wins(final: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Count the seeds in which each optimizer ends best; those that tie share the seed."""
    wins = dict.fromkeys(final, 0.0)
    for seed in dict.fromkeys(seed for found in final.values() for seed in found):
        scores = {k: found[seed] for k, found in final.items() if np.isfinite(found[seed])}
        winners = [k for k, score in scores.items() if score == max(scores.values())]
        for label in winners:
            wins[label] += 1 / len(winners)
    return wins


def _number(value: float) -> float | None:
    """A number for JSON, which has no infinity and no NaN: None."""
    return float(value) if np.isfinite(value) else None
